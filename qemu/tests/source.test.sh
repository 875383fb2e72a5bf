# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0

test_a_tree_a_tarball_and_a_git_tree_give_the_same_source() {
	local from_tree
	imported
	from_tree=$(cat "$CACHE/source")
	[[ $from_tree == linux-6.12.95-* ]]

	mkdir "$WORK/packed"
	cp -r "$WORK/linux" "$WORK/packed/linux-6.12.95"
	tar -cJf "$WORK/linux.tar.xz" -C "$WORK/packed" linux-6.12.95
	vm fetch --source "$WORK/linux.tar.xz"
	ends 0
	same "$from_tree" "$(cat "$CACHE/source")"

	git init -q "$WORK/linux"
	git -C "$WORK/linux" add -A
	git -C "$WORK/linux" commit -qm x
	echo 'not committed' >>"$WORK/linux/CREDITS"
	vm fetch --source="$WORK/linux"
	ends 0
	same "$from_tree" "$(cat "$CACHE/source")"
}

test_files_that_the_tree_ignores_are_imported_too() {
	kernel_tree "$WORK/linux"
	echo '*.o' >"$WORK/linux/.gitignore"
	echo firmware >"$WORK/linux/shipped.o"
	vm fetch --source "$WORK/linux"
	ends 0
	same firmware "$(git --git-dir="$CACHE/linux.git" show "$(cat "$CACHE/source"):shipped.o")"
}

test_a_source_that_is_there_is_not_fetched_again() {
	imported
	replace apt-get <<<'exit 1'
	vm fetch
	ends 0
	says 'is in use' 'linux-6.12.95-'
}

test_the_wrong_version_is_named() {
	kernel_tree "$WORK/old" 6 11 3
	vm fetch --source "$WORK/old"
	ends 1
	says "$WORK/old is Linux 6.11.3" 'for Linux 6.12.y'
	kernel_tree "$WORK/linux-7.1" 7 1 0
	tar -czf "$WORK/new.tar.gz" -C "$WORK" linux-7.1
	vm fetch --source "$WORK/new.tar.gz"
	ends 1
	says 'new.tar.gz is Linux 7.1.0'
	# 6.120 is not 6.12
	kernel_tree "$WORK/far" 6 120 0
	vm fetch --source "$WORK/far"
	ends 1
	[ ! -e "$CACHE/source" ]
}

test_something_else_than_a_kernel_is_told() {
	mkdir "$WORK/other"
	vm fetch --source "$WORK/other"
	ends 1
	says 'is not a kernel source'
	# What was looked for is not the shell's to tell
	says_not 'No such file'
	echo text >"$WORK/other.tar"
	vm fetch --source "$WORK/other.tar"
	ends 1
	says 'is not a kernel source'
	vm fetch --source "$WORK/nowhere"
	ends 1
	says 'no such file or directory' "$WORK/nowhere"
	says_not 'importing'
	mkfifo "$WORK/pipe"
	vm fetch --source "$WORK/pipe"
	ends 1
	says "$WORK/pipe is neither a directory nor a file"
	echo text >"$WORK/secret"
	chmod a-r "$WORK/secret"
	vm_unprivileged fetch --source "$WORK/secret"
	ends 1
	says "$WORK/secret cannot be read by $(id -un)"
}

test_a_tree_with_build_output_is_refused() {
	kernel_tree "$WORK/linux"
	touch "$WORK/linux/.config"
	vm fetch --source "$WORK/linux"
	ends 1
	says 'has been built in' 'make mrproper'
}

test_an_interrupted_import_is_begun_anew() {
	kernel_tree "$WORK/linux"
	mkdir -p "$CACHE/linux.git" "$CACHE/download/importing"
	echo half >"$CACHE/download/importing/half"
	touch "$CACHE/linux.git/importing.index.lock"
	vm fetch --source "$WORK/linux"
	ends 0
	[ -z "$(git --git-dir="$CACHE/linux.git" ls-tree --name-only "$(cat "$CACHE/source")" half)" ]
}
