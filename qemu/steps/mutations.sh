# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Is every guard needed? The kernel is built once with each of them under a switch;
# then it runs without one after the other, and the named test has to fail.

MUTANT_LIMIT=120
# Of one guest, in seconds: it goes through all sites
MUTANT_GUEST_LIMIT=5400

# run_mutant NUMBER: KUnit's cases with that site left out; the report is in
# DIRECTORY/NUMBER.json
run_mutant() {
	local directory=$RESULTS/mutations
	rm -f "$directory/$1.json"
	(cd "$TREES/mutated" && without_locks setsid timeout --kill-after=5 $MUTANT_LIMIT \
		tools/testing/kunit/kunit.py exec --arch um --build_dir "$BUILDS/mutated" --timeout $((MUTANT_LIMIT / 2)) \
		--kernel_args "traits_mutant=$1" --json="$directory/$1.json" 'traits*') \
		>"$directory/$1.log" 2>&1 </dev/null &
	await_group
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

# build_mutated: User Mode Linux with switches
build_mutated() {
	local directory=$RESULTS/mutations build=$BUILDS/mutated log=$RESULTS/mutations/build.log
	mkdir -p "$build"
	lock_exclusive "$build.lock"
	step "mutate: building User Mode Linux with $(wc -l <"$directory/sites.tsv") switches (log: $log)"
	(cd "$TREES/mutated" && exec setsid tools/testing/kunit/kunit.py build --arch um --build_dir "$build" \
		--jobs "$(nproc)" --kunitconfig "$CONFIG_DIRECTORY/kunit.config" --kconfig_add CONFIG_NET_TRAITS_DEBUG=y) \
		>"$log" 2>&1 </dev/null &
	if ! await_group; then
		explain_full_disk "$log"
		grep -E 'error:|\*\*\*' "$log" | head -n 10 | quoted || true
		fail "the kernel with switches does not build" "Log: $log"
	fi
}

# mutate_kunit: fills table.tsv for the sites that KUnit's cases reach
mutate_kunit() {
	local directory=$RESULTS/mutations number list name file case
	build_mutated
	step "mutate: KUnit with nothing left out"
	run_mutant 0 || fail "the cases fail with nothing left out: $(grep -E '\[FAILED\]' "$directory/0.log" | head -n 3 | paste -sd ' ')" \
		"Log: $directory/0.log"
	while IFS=$'\t' read -r number list name file case; do
		run_mutant "$number" || true
		note_mutant "$(outcome_of "$case" "$number")" "$name" "$file" "$case" \
			"$(cases_of "$number" | awk -F '\t' '$1 == "failed" { print ", " $2 " failed" }' | paste -sd '')"
	done < <(awk -F '\t' '$2 == "kunit"' "$directory/wanted.tsv")
}

# mutate_guest: the same for what the guest's tests reach. One guest goes through all
# sites; without a guard it may die, and another one goes on behind that.
mutate_guest() {
	local directory=$RESULTS/mutations guest=$RESULTS/mutations/guest number list name file test part outcome status count
	find_toolchain
	prepare_guest mutated-guest
	swift_build "the package and its tests" --build-tests
	build_bpf
	mkdir -p "$guest"
	rm -f "$guest"/*.status "$guest"/*.log

	# Site 0 is none: without it all tests that are named pass
	awk -F '\t' '$2 == "guest" { sub(/ : .*/, "", $5); print $5 }' "$directory/wanted.tsv" | sort -u >"$guest/tests"
	printf '0\t%s\t\n' "$(paste -sd '|' "$guest/tests")" >"$guest/todo"
	step "mutate: the guest's tests with nothing left out"
	boot_guest "$guest" $MUTANT_GUEST_LIMIT qemu/guest/mutants "$TEST_BUNDLE" "$guest" >/dev/null ||
		fail "the guest fails with nothing left out" "Log: $guest/output.log"
	[ "$(cat "$guest/0.status" 2>/dev/null)" = 0 ] ||
		fail "tests fail with nothing left out" "Log: $guest/0.log"
	# A name that fits none would pass
	count=$(grep -cE '^[^ ]+ Test ".* started\.$' "$guest/0.log") || true
	[ "$count" -ge "$(wc -l <"$guest/tests")" ] ||
		fail "guest.sites names $(wc -l <"$guest/tests") tests, and only $count of them exist" "They are in $guest/tests"

	awk -F '\t' -v OFS='\t' '$2 == "guest" { test = $5; part = ""
		if (i = index($5, " : ")) { test = substr($5, 1, i - 1); part = substr($5, i + 3) }
		print $1, test, part }' "$directory/wanted.tsv" >"$guest/left"
	step "mutate: $(wc -l <"$guest/left") sites in the guest (log: $guest/output.log)"
	while [ -s "$guest/left" ]; do
		cp "$guest/left" "$guest/todo"
		boot_guest "$guest" $MUTANT_GUEST_LIMIT qemu/guest/mutants "$TEST_BUNDLE" "$guest" >/dev/null 2>&1 || true
		# The first one without a status is the one that the guest died of
		: >"$guest/left"
		status=
		while IFS=$'\t' read -r number test part; do
			[ ! -e "$guest/$number.status" ] || continue
			if [ -z "$status" ]; then
				status=crashed
				echo $status >"$guest/$number.status"
			else
				printf '%s\t%s\t%s\n' "$number" "$test" "$part" >>"$guest/left"
			fi
		done <"$guest/todo"
	done
	while IFS=$'\t' read -r number list name file test; do
		case $(cat "$guest/$number.status") in
		0) outcome=passed ;;
		124 | 137) outcome=hung ;;
		crashed) outcome=crashed ;;
		*) outcome=failed ;;
		esac
		note_mutant $outcome "$name" "$file" "$test"
	done < <(awk -F '\t' '$2 == "guest"' "$directory/wanted.tsv")
}

# note_mutant OUTCOME NAME FILE TEST [REMARK]: a line of table.tsv. It counts only where the
# test that is named fails, or does not come to its end.
note_mutant() {
	printf '%s\t%s\t%s\t%s\n' "${@:1:4}" >>"$RESULTS/mutations/table.tsv"
	case $1 in
	failed | crashed | hung) detail "$(printf '%-8s %-27s %-26s %s' "${@:1:4}")" ;;
	*)
		missed=$((missed + 1))
		detail "NOT FOUND $2 ($3): $4: $1${5:-}" ;;
	esac
}

help_mutate() {
	cat <<-E
	Usage: qemu/vm mutate [--only kunit|guest] [TEXT]

	Leaves out, one after the other, each guard, copy and scrub that the lists of qemu/mutations name,
	and shows that the test named there turns red: it fails, or the kernel stops in it. kunit.sites: one
	build of User Mode Linux has all of them under a boot parameter. guest.sites: so has one kernel for
	QEMU, where the guest sets the parameter and runs the test. Status 0 if every one is found.

	  --only LIST  kunit or guest
	  TEXT         only sites whose name contains it

	The table is kept in .build-vm/results/mutations/table.tsv.
	E
}

command_mutate() {
	local only='' lists=(kunit guest) directory=$RESULTS/mutations missed=0 count list head
	while [ $# -gt 0 ]; do
		case $1 in
		--only)
			case ${2:-} in
			kunit | guest) lists=("$2") ;;
			*) usage_error "mutate --only: kunit or guest, not '${2:-}'" mutate ;;
			esac
			shift 2 ;;
		-*) usage_error "mutate: what is '$1'?" mutate ;;
		*)
			[ -z "$only" ] || usage_error "mutate: one text at most, not '$only' and '$1'" mutate
			only=$1
			shift ;;
		esac
	done
	open_cache
	need_series mutate
	local -a wants=(source)
	# Sites in the guest need more
	[[ " ${lists[*]} " != *' guest '* ]] ||
		! awk -v only="$only" '!/^#/ && NF && index($0, only) { found = 1 } END { exit !found }' "$ROOT/qemu/mutations/guest.sites" ||
		wants+=(swift guest)
	check_machine "${wants[@]}"
	install_packages
	lock_clone
	ensure_source
	ensure_patched
	mkdir -p "$directory"
	head=$(tree_git patched rev-parse HEAD)
	lock_exclusive "$TREES/mutated.lock"
	# The switches of an earlier run would be in the way of another series. Of the same one
	# they stay: what does not change is not built again.
	[ ! -e "$TREES/mutated/.git" ] || [ "$(tree_git mutated rev-parse HEAD)" = "$head" ] ||
		logged "$directory/build.log" tree_git mutated reset -q --hard
	switch_tree mutated "$head"
	lock_exclusive "$TREES/mutated.lock"
	"$ROOT/qemu/mutations/mutate.py" "$TREES/mutated" "$ROOT"/qemu/mutations/{kunit,guest}.sites \
		>"$directory/sites.tsv" || fail "the lists in qemu/mutations do not fit the series, see above"
	lock_shared "$TREES/mutated.lock"
	awk -F '\t' -v only="$only" -v lists=" ${lists[*]} " 'index($3, only) && index(lists, " " $2 " ")' \
		"$directory/sites.tsv" >"$directory/wanted.tsv"
	[ -s "$directory/wanted.tsv" ] || fail "no site's name contains '$only'"

	: >"$directory/table.tsv"
	for list in "${lists[@]}"; do
		! awk -F '\t' -v list="$list" '$2 == list { found = 1 } END { exit !found }' "$directory/wanted.tsv" ||
			"mutate_$list"
	done
	count=$(wc -l <"$directory/table.tsv")
	step "mutate: $((count - missed)) of $count found, $missed not ($directory/table.tsv)"
	[ "$missed" -eq 0 ]
}
