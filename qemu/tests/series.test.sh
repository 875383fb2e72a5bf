# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0

# written FILE: when it was written last, to the nanosecond
written() {
	stat -c %y "$TREES/patched/$1"
}

test_an_empty_series_is_told() {
	local command
	for command in 'patch apply' 'patch check' build demo test 'boot -- true'; do
		# shellcheck disable=SC2086
		vm $command
		ends 1
		says 'no patch in kernel-patches/linux-6.12:'
	done
}

test_apply_makes_one_commit_a_patch() {
	imported
	series_of_two
	vm patch apply
	ends 0
	says '2 patches on linux-6.12.95-'
	same $'net: add traits\nnet: return two\nLinux 6.12.95' \
		"$(git -C "$TREES/patched" log --format=%s packet-traits/6.12.95)"
	grep -q 'return 2' "$TREES/patched/net/core/dev.c"
	same 'int traits;' "$(cat "$TREES/patched/net/core/traits.c")"
	[ ! -e "$TREES/applying" ]
}

test_applying_again_writes_no_file() {
	local before
	imported
	series_of_two
	vm patch apply
	before=$(written net/core/dev.c)$(written net/core/Kconfig)$(written CREDITS)
	vm patch apply
	ends 0
	says_not 'applying'
	same "$before" "$(written net/core/dev.c)$(written net/core/Kconfig)$(written CREDITS)"
}

test_a_changed_patch_writes_only_what_it_changes() {
	local device kconfig
	imported
	series_of_two
	vm patch apply
	device=$(written net/core/dev.c)
	kconfig=$(written net/core/Kconfig)
	sed -i 's/^+# line twenty$/+# line 20, changed/' "$PATCHES"/0002-*.patch
	vm patch apply
	ends 0
	grep -q '^# line 20, changed$' "$TREES/patched/net/core/Kconfig"
	same "$device" "$(written net/core/dev.c)"
	[ "$kconfig" != "$(written net/core/Kconfig)" ]
}

test_a_patch_that_does_not_apply_is_named_with_file_and_hunk() {
	imported
	series_of_two
	sed -i 's/^-# line 20$/-# line xx/' "$PATCHES"/0002-*.patch
	vm patch apply
	ends 1
	says '0002-net-add-traits.patch does not apply to Linux 6.12.95 (linux-6.12.95-' \
		': 1 of its 2 hunks is rejected' 'net/core/Kconfig:17' '/6.12.95/log/rejects'
	grep -q '^-# line xx$' "$CACHE/6.12.95/log/rejects/net/core/Kconfig.rej"
	# What was there before is not left half changed
	sed -i 's/^-# line xx$/-# line 20/' "$PATCHES"/0002-*.patch
	vm patch apply
	ends 0
}

test_a_rejected_hunk_is_named_with_its_function() {
	imported
	series_of_two
	sed -i 's/^-\treturn 1;$/-\treturn one;/; s/^@@ .*/& int device_one(void)/' "$PATCHES"/0001-*.patch
	vm patch apply
	ends 1
	says '0001-net-return-two.patch does not apply' '1 of its 1 hunks is rejected' 'net/core/dev.c:1 in device_one()'
	# Once: the names of files and places
	same 1 "$(grep -c 'net/core/dev.c' <<<"$OUTPUT")"
}

test_a_patch_of_a_missing_file_is_named() {
	imported
	series_of_two
	sed -i 's,net/core/Kconfig,net/core/Konfig,g' "$PATCHES"/0002-*.patch
	vm patch apply
	ends 1
	says '0002-net-add-traits.patch does not apply' 'net/core/Konfig: No such file'
}

test_work_in_the_cached_tree_is_not_lost() {
	imported
	series_of_two
	vm patch apply
	echo edited >>"$TREES/patched/CREDITS"
	sed -i 's/^+# line twenty$/+# line 20, changed/' "$PATCHES"/0002-*.patch
	vm patch apply
	ends 1
	says 'changes that are not committed' 'CREDITS' '--force'
	git -C "$TREES/patched" commit -qam 'my own'
	vm patch apply
	ends 1
	says 'commits that are not in the series' 'my own' 'qemu/vm patch export'
	grep -q edited "$TREES/patched/CREDITS"
	vm patch apply --force
	ends 0
	same untouched "$(cat "$TREES/patched/CREDITS")"
}

test_what_was_committed_there_can_be_exported_and_is_then_the_series() {
	local before
	imported
	series_of_two
	vm patch apply
	echo edited >"$TREES/patched/CREDITS"
	git -C "$TREES/patched" commit -qam 'CREDITS: edit'
	vm patch export
	ends 0
	says '3 patches' '2 files written' '0003-CREDITS-edit.patch'
	before=$(written CREDITS)
	vm patch apply
	ends 0
	same "$before" "$(written CREDITS)"
}

test_an_interrupted_switch_is_set_right() {
	imported
	series_of_two
	vm patch apply
	# As after a kill in the middle of a checkout
	touch "$TREES/patched.switching" "$CACHE/linux.git/worktrees/patched/index.lock"
	echo half >"$TREES/patched/net/core/dev.c"
	vm patch apply
	ends 0
	says 'interrupted'
	grep -q 'return 2' "$TREES/patched/net/core/dev.c"
	[ ! -e "$TREES/patched.switching" ]
}

test_an_interrupted_apply_is_begun_anew() {
	imported
	series_of_two
	mkdir -p "$TREES/applying/half"
	vm patch apply
	ends 0
	grep -q 'return 2' "$TREES/patched/net/core/dev.c"
}

test_export_writes_nothing_when_nothing_changed() {
	local before
	series_of_two
	before=$(cd "$PATCHES" && stat -c '%n %y' ./* && sha256sum ./*)
	# Neither the day nor the person nor their configuration counts
	git config --global format.signature someone
	git config --global diff.noprefix true
	git config --global core.abbrev 7
	GIT_COMMITTER_NAME=Else vm patch export --from "$WORK/work" --base base --branch HEAD
	ends 0
	says '0 files written, 0 removed'
	same "$before" "$(cd "$PATCHES" && stat -c '%n %y' ./* && sha256sum ./*)"
}

test_export_renames_and_removes_what_went_away() {
	series_of_two
	git -C "$WORK/work" reset -q --hard HEAD~1
	vm patch export --from "$WORK/work" --base base
	ends 0
	says 'removed: 0002-net-add-traits.patch'
	same '0000-cover-letter.txt 0001-net-return-two.patch base cover-letter.txt' "$(cd "$PATCHES" && echo ./* | sed 's,\./,,g')"
}

test_the_cover_letter_has_text_shortlog_and_diffstat() {
	series_of_two
	cat "$PATCHES/0000-cover-letter.txt"
	grep -qx 'Subject: \[PATCH 0/2\] net: two changes' "$PATCHES/0000-cover-letter.txt"
	grep -qx 'They are for testing.' "$PATCHES/0000-cover-letter.txt"
	grep -qx 'Tester (2):' "$PATCHES/0000-cover-letter.txt"
	grep -qx '  net: return two' "$PATCHES/0000-cover-letter.txt"
	grep -q '3 files changed, 3 insertions' "$PATCHES/0000-cover-letter.txt"
	grep -q 'create mode 100644 net/core/traits.c' "$PATCHES/0000-cover-letter.txt"
}

test_export_signs_off_only_when_asked() {
	series_of_two
	! grep -q Signed-off-by "$PATCHES"/*.patch || return 1
	vm patch export --signoff --from "$WORK/work" --base base
	ends 0
	same 2 "$(grep -lx 'Signed-off-by: Tester <tester@localhost>' "$PATCHES"/*.patch | wc -l)"
}

test_the_series_applies_with_plain_git_am() {
	series_of_two
	git -C "$WORK/work" checkout -q base
	git -C "$WORK/work" am -q "$PATCHES"/*.patch
	same 2 "$(git -C "$WORK/work" rev-list --count base..HEAD)"
}

test_export_tells_what_it_lacks() {
	series_of_two
	vm patch export
	ends 1
	says 'no tree to export from' 'qemu/vm patch apply'
	vm patch export --from "$WORK/work"
	ends 1
	says 'needs --base REF'
	vm patch export --from "$WORK/work" --base nothing
	ends 1
	says "has no commit 'nothing'"
	vm patch export --from "$WORK/work" --base HEAD
	ends 1
	says 'nothing to export'
	rm "$PATCHES/cover-letter.txt"
	vm patch export --from "$WORK/work" --base base
	ends 1
	says 'no kernel-patches/linux-6.12/cover-letter.txt'
}

test_check_runs_checkpatch_and_builds_what_each_patch_touches() {
	imported
	series_of_two
	vm patch check
	ends 0
	says 'built: net/core/dev.o' 'built: net/core/traits.o' '2 patches are clean'
}

test_check_names_a_patch_that_checkpatch_dislikes() {
	imported
	series_of_two
	sed -i 's/^+# line twenty$/+# line twenty /' "$PATCHES"/0002-*.patch
	vm patch check
	ends 1
	says '0002-net-add-traits.patch' 'TRAILING_WHITESPACE' '1 of the checks of 2 patches failed'
}

test_check_names_a_patch_that_does_not_build_by_itself() {
	imported
	series_of_two
	sed -i 's/^+\treturn 2;$/+\treturn two;/' "$PATCHES"/0001-*.patch
	vm patch check
	ends 1
	says 'undeclared' 'does not build: net/core/dev.o' '1 of the checks of 2 patches failed'
}

# older_kernel: the series is for 6.12.107; work95 is a tree of 6.12.95 with what it needs there
older_kernel() {
	printf '6.12.95\n6.12.107\n' >"$CLONE/kernel-patches/tested"
	git init -q "$WORK/work95"
	kernel_tree "$WORK/work95"
	git -C "$WORK/work95" add -A
	git -C "$WORK/work95" commit -qm base
	git -C "$WORK/work95" tag base
	git clone -q "$WORK/work95" "$WORK/work107"
	sed -i 's/^SUBLEVEL = .*/SUBLEVEL = 107/' "$WORK/work107/Makefile"
	# Right above what the second patch changes, and a fault that this kernel does not have
	sed -i 's/^# line 19$/# line nineteen/; s/^# line 2$/# line two/' "$WORK/work107/net/core/Kconfig"
	git -C "$WORK/work107" commit -qam base
	git -C "$WORK/work107" tag -f base >/dev/null
	for tree in work95 work107; do
		sed -i 's/return 1/return 2/' "$WORK/$tree/net/core/dev.c"
		git -C "$WORK/$tree" commit -qam 'net: return two'
		[ $tree != work95 ] || {
			sed -i 's/^# line 2$/# line two/' "$WORK/$tree/net/core/Kconfig"
			git -C "$WORK/$tree" commit -qam 'net: mend line two'
		}
		sed -i 's/^# line 20$/# line twenty/' "$WORK/$tree/net/core/Kconfig"
		git -C "$WORK/$tree" commit -qam 'net: count'
	done
	printf 'net: two changes\n\nThey are for testing.\n' >"$PATCHES/cover-letter.txt"
	vm patch export --from "$WORK/work107" --base base
	ends 0
}

test_an_older_kernel_keeps_only_what_is_different_for_it() {
	local letter
	older_kernel
	letter=$(cat "$PATCHES/0000-cover-letter.txt")
	vm patch export --from "$WORK/work95" --base base
	ends 0
	says '2 of 3 patches are different for Linux 6.12.95'
	same '0001a-net-mend-line-two.patch 0002-net-count.patch' "$(cd "$PATCHES.95" && echo *)"
	same "$letter" "$(cat "$PATCHES/0000-cover-letter.txt")"
	same "linux-6.12/0001-net-return-two.patch linux-6.12.95/0001a-net-mend-line-two.patch linux-6.12.95/0002-net-count.patch" \
		"$("$CLONE/kernel-patches/list" 6.12.95 | sed "s,.*/\(linux-\),\1," | paste -sd ' ')"
	same "linux-6.12/0001-net-return-two.patch linux-6.12/0002-net-count.patch" \
		"$("$CLONE/kernel-patches/list" "$WORK/work107" | sed "s,.*/\(linux-\),\1," | paste -sd ' ')"
	# Each set applies with plain git am
	for tree in work95 work107; do
		git -C "$WORK/$tree" checkout -q base
		# shellcheck disable=SC2046
		git -C "$WORK/$tree" am -q $("$CLONE/kernel-patches/list" "$WORK/$tree")
		same '' "$(git -C "$WORK/$tree" diff master)"
	done
}

test_a_patch_that_no_longer_differs_is_removed_from_the_folder() {
	older_kernel
	vm patch export --from "$WORK/work95" --base base
	git -C "$WORK/work95" checkout -q base
	sed -i 's/return 1/return 2/' "$WORK/work95/net/core/dev.c"
	git -C "$WORK/work95" commit -qam 'net: return two'
	sed -i 's/^# line 19$/# line nineteen/; s/^# line 2$/# line two/' "$WORK/work95/net/core/Kconfig"
	git -C "$WORK/work95" commit -qam 'net: mend lines'
	sed -i 's/^# line 20$/# line twenty/' "$WORK/work95/net/core/Kconfig"
	git -C "$WORK/work95" commit -qam 'net: count'
	vm patch export --from "$WORK/work95" --base base
	ends 0
	says 'removed: linux-6.12.95/0002-net-count.patch' '1 of 3 patches are different'
	same '0001a-net-mend-lines.patch' "$(cd "$PATCHES.95" && echo *)"
}

test_an_older_kernel_cannot_leave_a_patch_out() {
	older_kernel
	git -C "$WORK/work95" reset -q --hard HEAD~1
	vm patch export --from "$WORK/work95" --base base
	ends 1
	says 'lacks a patch that Linux 6.12.95 would get: 0002-net-count.patch'
	[ ! -e "$PATCHES.95" ]
}

test_export_refuses_another_author() {
	series_of_two
	git -C "$WORK/work" commit -q --amend --no-edit --author 'Somebody Else <else@localhost>'
	vm patch export --from "$WORK/work" --base base
	ends 1
	says '1 of the patches have another author than Tester <tester@localhost>' \
		'Somebody Else <else@localhost>: net: add traits' '--author "Tester <tester@localhost>"'
	grep -q '^From: Tester ' "$PATCHES"/0002-*.patch
	rm "$CLONE/kernel-patches/author"
	vm patch export --from "$WORK/work" --base base
	ends 1
	says 'no kernel-patches/author'
}

test_all_patches_have_one_author() {
	local author others
	author=$(cat "$SOURCE_ROOT/kernel-patches/author")
	others=$(find "$SOURCE_ROOT/kernel-patches" -name '*.patch' -exec awk -v wanted="From: $author" '
		/^From: / { if ($0 != wanted) print FILENAME ": " $0; nextfile }' {} +)
	same '' "$others"
}

test_a_merge_stops_where_a_person_has_to_decide() {
	local tree=$CACHE/6.12.107/tree/patched
	imported
	series_of_two
	vm patch apply
	ends 0
	kernel_tree "$WORK/linux107" 6 12 107
	# The first patch merges, the second one does not
	sed -i '1i/* new */' "$WORK/linux107/net/core/dev.c"
	sed -i 's/^# line 20$/# line XX/' "$WORK/linux107/net/core/Kconfig"
	vm fetch --source "$WORK/linux107"
	vm patch apply
	ends 1
	says 'does not apply to Linux 6.12.107' "'qemu/vm patch apply --3way'"
	vm patch apply --3way
	ends 1
	says "'git am' stopped in $tree: 0002 net: add traits" 'conflict in net/core/Kconfig' "'git am --continue'"
	# Nothing throws that state away, or takes half of the series for all of it
	vm patch apply
	ends 1
	vm patch apply --3way
	ends 1
	says "is not finished in $tree" "'git am --continue'"
	vm patch export
	ends 1
	says "is not finished in $tree"
	[ -e "$PATCHES/0002-net-add-traits.patch" ]
	sed -i '/^<<<<<<<\|^=======\|^>>>>>>>\|^# line XX$/d' "$tree/net/core/Kconfig"
	git -C "$tree" add -A
	git -C "$tree" am --continue
	vm patch export
	ends 0
	says '2 patches in kernel-patches/linux-6.12'
	vm patch apply
	ends 0
	vm patch export --kernel 6.12.95
	ends 0
	says '1 of 2 patches are different for Linux 6.12.95'
}

test_a_merge_without_an_ancestor_names_the_way_out() {
	imported
	series_of_two
	sed -i 's/^-# line 20$/-# line xx/; s/^index [0-9a-f]*\.\./index 0123456789ab../' "$PATCHES"/0002-*.patch
	vm patch apply --3way
	ends 1
	says "'net: return two' is the last patch that applies to linux-6.12.95-" 'no kernel to merge from' \
		'qemu/vm patch apply --kernel 6.12.95'
}
