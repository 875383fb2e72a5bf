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

# mirror_offers LINES...: "SUITE VERSION" of each package that the mirrors have. What they have is
# a small tree of that version; APT_CALLS has what apt was asked.
mirror_offers() {
	export APT_CALLS=$WORK/apt.calls MIRROR=$WORK/mirror
	: >"$APT_CALLS"
	printf '%s\n' "$@" >"$MIRROR"
	replace apt-get <<-'APT'
	echo "apt-get ${@: -1}" >>"$APT_CALLS"
	case "$*" in
	*indextargets*)
		echo "Debian http://mirror.invalid/debian/ bookworm"
		echo "Debian http://mirror.invalid/debian/ bookworm-updates"
		echo "Debian-Security http://mirror.invalid/debian-security/ bookworm-security"
		echo "Other Vendor http://other.invalid/ stable" ;;
	# As apt ends if a suite does not exist
	*update) cp "$PACKET_TRAITS_CACHE/apt/sources.list" "$APT_CALLS.list"; exit 100 ;;
	*download*)
		version=${!#}
		version=${version#*=}
		touch "linux-source-6.12_${version}_all.deb" ;;
	esac
	APT
	replace apt-cache <<-'APT'
	while read -r suite version; do
		! grep -q " $suite main" "$PACKET_TRAITS_CACHE/apt/sources.list" ||
			echo "linux-source-6.12 | $version | http://mirror.invalid/debian $suite/main amd64 Packages"
	done <"$MIRROR"
	APT
	# It unpacks the tree that a package of that name would have
	replace dpkg-deb <<-'DEB'
	sublevel=$(sed -E 's/.*_6\.12\.([0-9]+).*/\1/' <<<"$2")
	mkdir -p "$3/usr/src"
	tar -C "$MIRROR.trees" -cJf "$3/usr/src/linux-source-6.12.tar.xz" "linux-6.12.$sublevel"
	DEB
	local sublevel
	while read -r sublevel; do
		kernel_tree "$MIRROR.trees/linux-6.12.$sublevel" 6 12 "$sublevel"
	done < <(sed -E 's/.* 6\.12\.([0-9]+).*/\1/' "$MIRROR" | sort -u)
}

# tested VERSIONS...
tested() {
	{ echo '# a comment'; printf '%s\n' "$@"; } >"$CLONE/kernel-patches/tested"
}

test_the_newest_tested_version_of_all_suites_is_taken() {
	tested 6.12.95 6.12.117
	mirror_offers 'bookworm-backports 6.12.95-1~bpo12+1' 'trixie 6.12.117-1' 'trixie-security 6.12.119-1' \
		'bookworm-security 6.12.117-1~deb12u1' 'trixie 6.12.107-1'
	vm fetch
	ends 0
	says 'linux-source-6.12 6.12.117-1 from trixie' 'is in use'
	says_not 'was not tested'
	[[ $(cat "$CACHE/source") == linux-6.12.117-* ]]
	# The package's content is in git, and nowhere else
	same '' "$(find "$CACHE/download" -name '*.deb' -o -name '*.tar.xz')"
	# These suites, and of no other vendor
	same 'bookworm bookworm-backports bookworm-security bookworm-updates trixie trixie-backports trixie-security trixie-updates' \
		"$(sed -E 's/.*invalid[^ ]* ([^ ]*) main/\1/' "$APT_CALLS.list" | sort | paste -sd ' ')"
	! grep -q other.invalid "$APT_CALLS.list" || return 1
	grep -q 'debian-security/ trixie-security main' "$APT_CALLS.list"
	# It stays in use, and nobody is asked again
	: >"$APT_CALLS"
	vm fetch
	ends 0
	same '' "$(cat "$APT_CALLS")"
}

test_a_version_that_was_not_tested_is_taken_with_a_notice() {
	tested 6.12.95 6.12.118
	mirror_offers 'trixie 6.12.117-1' 'trixie-security 6.12.119-1'
	vm fetch
	ends 0
	says 'Linux 6.12.119 was not tested with the series, the newest tested is 6.12.118'
	[[ $(cat "$CACHE/source") == linux-6.12.119-* ]]
}

test_a_version_can_be_asked_for() {
	tested 6.12.95 6.12.117
	mirror_offers 'bookworm-backports 6.12.95-1~bpo12+1' 'trixie 6.12.107-1' 'trixie 6.12.117-1'
	vm fetch --version 6.12.107
	ends 0
	[[ $(cat "$CACHE/source") == linux-6.12.107-* ]]
	vm fetch
	says 'linux-6.12.107-'
	vm fetch --version=6.12.95
	ends 0
	[[ $(cat "$CACHE/source") == linux-6.12.95-* ]]
	# It is there
	: >"$APT_CALLS"
	vm fetch --version 6.12.107
	ends 0
	same '' "$(cat "$APT_CALLS")"
	vm fetch --version 6.12.200
	ends 1
	says 'Linux 6.12.200 is not in the cache, and no suite offers it' 'Offered are: 6.12.95 6.12.107 6.12.117' '--source PATH'
	[[ $(cat "$CACHE/source") == linux-6.12.107-* ]]
}

test_a_release_without_bookworm_backports_gets_6_12_95_from_there_if_asked() {
	mirror_offers 'bookworm-backports 6.12.95-1~bpo12+1' 'trixie 6.12.117-1'
	sed -i 's/ bookworm/ trixie/; s/bookworm-/trixie-/' "$COMMANDS/apt-get"
	vm fetch
	ends 0
	! grep -q bookworm "$APT_CALLS.list" || return 1
	vm fetch --version 6.12.95
	ends 0
	says 'from bookworm-backports'
}

test_a_system_without_package_lists_tells_its_mirrors() {
	mirror_offers 'trixie 6.12.117-1'
	sed -i '/indextargets\*)/,/;;/d' "$COMMANDS/apt-get"
	sed -i '2a case "$*" in *--print-uris*) echo "'"'http://mirror.invalid/debian/dists/bookworm/InRelease' x 0"'"; echo "'"'http://mirror.invalid/debian-security/dists/bookworm-security/InRelease' x 0"'"; exit ;; esac' "$COMMANDS/apt-get"
	vm fetch
	ends 0
	grep -q 'debian-security/ trixie-security main' "$APT_CALLS.list"
	grep -q 'debian/ bookworm main' "$APT_CALLS.list"
}

test_a_kernel_of_one_run_has_a_tree_and_objects_of_its_own() {
	imported
	mirror_offers 'trixie 6.12.117-1'
	vm build --unpatched
	ends 0
	vm build --unpatched --kernel 6.12.117
	ends 0
	says "$CACHE/6.12.117/build/unpatched/arch/x86/boot/bzImage"
	grep -q 'SUBLEVEL = 117' "$CACHE/6.12.117/tree/unpatched/Makefile"
	grep -q 'SUBLEVEL = 95' "$TREES/unpatched/Makefile"
	[ -e "$CACHE/6.12.117/log/build-unpatched.log" ]
	# For that run only
	[[ $(cat "$CACHE/source") == linux-6.12.95-* ]]
	vm build --unpatched
	ends 0
	says 'nothing changed' "$BUILDS/unpatched/arch"
	: >"$APT_CALLS"
	vm build --unpatched --kernel=6.12.117
	ends 0
	says 'nothing changed'
	same '' "$(cat "$APT_CALLS")"
	series_of_two >/dev/null
	vm build
	ends 0
	vm build --kernel 6.12.117
	ends 0
	same 'packet-traits/6.12.117' "$(git -C "$CACHE/6.12.117/tree/patched" branch --show-current)"
	same 'packet-traits/6.12.95' "$(git -C "$TREES/patched" branch --show-current)"
}

test_patches_that_differ_for_an_older_kernel_are_used_for_it() {
	imported
	series_of_two >/dev/null
	mkdir "$CLONE/kernel-patches/linux-6.12.95"
	sed 's/^+\(.*\)return 2/+\1return 3/' "$PATCHES/0001-net-return-two.patch" >"$CLONE/kernel-patches/linux-6.12.95/0001-net-return-two.patch"
	vm patch apply
	ends 0
	grep -q 'return 3' "$TREES/patched/net/core/dev.c"
	mirror_offers 'trixie 6.12.117-1'
	vm patch apply --kernel 6.12.117
	ends 0
	grep -q 'return 2' "$CACHE/6.12.117/tree/patched/net/core/dev.c"
}

test_a_cache_of_the_former_layout_goes_on() {
	imported
	series_of_two >/dev/null
	mkdir -p "$CACHE/tree" "$CACHE/build"
	rm -r "${CACHE:?}/6.12.95"
	git --git-dir="$CACHE/linux.git" worktree prune
	git --git-dir="$CACHE/linux.git" worktree add -q -b packet-traits "$CACHE/tree/patched" "$(cat "$CACHE/source")"
	vm patch apply
	ends 0
	says "$CACHE/tree and $CACHE/build are no longer used"
	[ -e "$TREES/patched/net/core/traits.c" ]
	[ -e "$CACHE/tree/patched/.git" ]
	same former-packet-traits "$(git -C "$CACHE/tree/patched" branch --show-current)"
}

test_a_version_that_a_run_chose_is_not_fetched_again() {
	kernel_tree "$WORK/linux"
	vm fetch --source "$WORK/linux"
	ends 0
	# As after --kernel on an empty cache: no source is in use
	rm "$CACHE/source"
	vm fetch
	ends 0
	says 'linux-6.12.95-'
	says_not 'which versions'
}
