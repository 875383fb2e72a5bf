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
	says '0002-net-add-traits.patch does not apply to linux-6.12.95-' 'in net/core/Kconfig, the hunk at line 17'
	# What was there before is not left half changed
	sed -i 's/^-# line xx$/-# line 20/' "$PATCHES"/0002-*.patch
	vm patch apply
	ends 0
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
	same '0000-cover-letter.txt 0001-net-return-two.patch cover-letter.txt' "$(cd "$PATCHES" && echo ./* | sed 's,\./,,g')"
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
