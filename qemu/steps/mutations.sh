# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Is every guard needed? The kernel is built once with each of them under a switch;
# then it runs once for each, without it, and the named test has to fail.

MUTANT_LIMIT=120

# run_mutant NUMBER: KUnit's cases with that site left out; the report is in
# DIRECTORY/NUMBER.json
run_mutant() {
	local directory=$RESULTS/mutations status=0
	rm -f "$directory/$1.json"
	(cd "$CACHE/tree/mutated" && exec setsid timeout --kill-after=5 $MUTANT_LIMIT \
		tools/testing/kunit/kunit.py exec --arch um --build_dir "$CACHE/build/mutated" --timeout $((MUTANT_LIMIT / 2)) \
		--kernel_args "traits_mutant=$1" --json="$directory/$1.json" 'traits*') \
		>"$directory/$1.log" 2>&1 </dev/null 9>&- &
	CHILD_GROUP=$!
	wait $CHILD_GROUP || status=$?
	CHILD_GROUP=
	return $status
}

# cases_of NUMBER: "outcome TAB case" of what that kernel reported, in the order of the run
cases_of() {
	# What a kernel that stopped did not come to has no name
	jq -r -f "$ROOT/qemu/steps/kunit.jq" "$RESULTS/mutations/$1.json" 2>/dev/null |
		awk -F '\t' '{ n = split($2, path, "/") } path[n] != "" { print $1 "\t" path[n] }'
}

# outcome_of CASE NUMBER: failed, passed, crashed (the kernel stopped in that case), or
# what became of the kernel before
outcome_of() {
	awk -F '\t' -v wanted="$1" '
		FNR == NR { order[++count] = $2; next }
		{ outcome[$2] = $1 }
		END {
			for (i = 1; i < count && order[i] in outcome; i++)
				;
			print wanted in outcome ? outcome[wanted] : order[i] == wanted ? "crashed" : "stopped in " order[i]
		}' <(cases_of 0) <(cases_of "$2")
}

help_mutate() {
	cat <<-E
	Usage: qemu/vm mutate [TEXT]

	Leaves out, one after the other, each guard, copy and scrub that qemu/mutations/kunit.sites lists,
	and shows that the test named there turns red: it fails, or the kernel stops in it. One build of
	User Mode Linux has all of them under a boot parameter. Status 0 if every one is found.

	  TEXT   only sites whose name contains it

	The table is kept in .build-vm/results/mutations/table.tsv.
	E
}

command_mutate() {
	local only='' directory=$RESULTS/mutations build=$CACHE/build/mutated log number name file case outcome missed=0 count=0
	case $# in
	0) ;;
	1) only=$1 ;;
	*) usage_error "mutate: one text at most, not '$*'" mutate ;;
	esac
	open_cache
	need_series mutate
	install_packages
	lock_cache
	ensure_source
	ensure_patched
	mkdir -p "$directory" "$build"
	log=$directory/build.log
	# The switches of an earlier run would be in the way of another series
	[ ! -e "$CACHE/tree/mutated/.git" ] || logged "$log" tree_git mutated reset -q --hard
	switch_tree mutated "$(tree_git patched rev-parse HEAD)"
	"$ROOT/qemu/mutations/mutate.py" "$CACHE/tree/mutated" "$ROOT/qemu/mutations/kunit.sites" >"$directory/sites.tsv" ||
		fail "qemu/mutations/kunit.sites does not fit the series, see above"

	step "mutate: building User Mode Linux with $(wc -l <"$directory/sites.tsv") switches (log: $log)"
	(cd "$CACHE/tree/mutated" && exec setsid tools/testing/kunit/kunit.py build --arch um --build_dir "$build" \
		--jobs "$(nproc)" --kunitconfig "$CONFIG_DIRECTORY/kunit.config" --kconfig_add CONFIG_NET_TRAITS_DEBUG=y) \
		>"$log" 2>&1 </dev/null 9>&- &
	CHILD_GROUP=$!
	if ! wait $CHILD_GROUP; then
		CHILD_GROUP=
		explain_full_disk "$log"
		grep -E 'error:|\*\*\*' "$log" | head -n 10 | quoted || true
		fail "the kernel with switches does not build" "Log: $log"
	fi
	CHILD_GROUP=

	step "mutate: with nothing left out"
	run_mutant 0 || fail "the cases fail with nothing left out: $(grep -E '\[FAILED\]' "$directory/0.log" | head -n 3 | paste -sd ' ')" \
		"Log: $directory/0.log"
	: >"$directory/table.tsv"
	while IFS=$'\t' read -r number name file case; do
		[[ $name == *"$only"* ]] || continue
		count=$((count + 1))
		run_mutant "$number" || true
		outcome=$(outcome_of "$case" "$number")
		printf '%s\t%s\t%s\t%s\n' "$outcome" "$name" "$file" "$case" >>"$directory/table.tsv"
		case $outcome in
		# It counts only where the case that is named fails
		failed | crashed) detail "$(printf '%-8s %-27s %-26s %s' "$outcome" "$name" "$file" "$case")" ;;
		*)
			missed=$((missed + 1))
			detail "NOT FOUND $name ($file): $case: $outcome$(cases_of "$number" | awk -F '\t' '$1 == "failed" { print ", " $2 " failed" }' | paste -sd '')" ;;
		esac
	done <"$directory/sites.tsv"
	[ $count -gt 0 ] || fail "no site's name contains '$only'"
	step "mutate: $((count - missed)) of $count found, $missed not ($directory/table.tsv)"
	[ $missed -eq 0 ]
}
