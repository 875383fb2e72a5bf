# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Linux 6.12's source: from a given tree or tarball, or from Debian's package;
# imported into a git repository in the cache.

KERNEL_VERSION=6
KERNEL_PATCHLEVEL=12
SERIES_DIRECTORY=$ROOT/kernel-patches/linux-$KERNEL_VERSION.$KERNEL_PATCHLEVEL
DEBIAN_PACKAGE=linux-source-$KERNEL_VERSION.$KERNEL_PATCHLEVEL

# An unpacked tree, its copy as git objects, and one worktree at a time
SOURCE_SPACE_MB=4500

# linux_git ARGUMENTS...: git on the cache's repository. The user's own
# configuration stays out, so that objects and messages are the same everywhere.
linux_git() {
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null \
		git --git-dir="$CACHE/linux.git" "$@"
}

# tree_git FLAVOUR ARGUMENTS...: the same inside a worktree
tree_git() {
	local flavour=$1
	shift
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null \
		git -C "$CACHE/tree/$flavour" "$@"
}

# makefile_version: reads a kernel Makefile, prints VERSION.PATCHLEVEL.SUBLEVEL
makefile_version() {
	awk -F ' *= *' '
		$1 == "VERSION" { version = $2 }
		$1 == "PATCHLEVEL" { patchlevel = $2 }
		$1 == "SUBLEVEL" { sublevel = $2; exit }
		END { if (version != "" && patchlevel != "") print version "." patchlevel "." sublevel }'
}

# check_version VERSION WHERE
check_version() {
	case $1 in
	$KERNEL_VERSION.$KERNEL_PATCHLEVEL.*) ;;
	'') fail "$2 is not a kernel source: no VERSION and PATCHLEVEL in its Makefile" \
		"A tree or tarball of Linux $KERNEL_VERSION.$KERNEL_PATCHLEVEL.y is needed." ;;
	*) fail "$2 is Linux $1: the series is for Linux $KERNEL_VERSION.$KERNEL_PATCHLEVEL.y" ;;
	esac
}

# current_source: the tag of the source in use, nothing if there is none
current_source() {
	local tag
	tag=$(cat "$CACHE/source" 2>/dev/null) || return 0
	linux_git rev-parse -q --verify "refs/tags/$tag" >/dev/null 2>&1 && echo "$tag"
	return 0
}

# apt_mirrors: "URI CODENAME" of each Debian archive that this machine uses
apt_mirrors() {
	# The variables are apt's, not the shell's
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(LABEL) $(REPO_URI) $(RELEASE)' 'Identifier: Packages' 2>/dev/null |
		awk '$1 == "Debian" && $3 !~ /-/ { print $2, $3 }' | sort -u
}

# private_apt apt-get|apt-cache ARGUMENTS...: apt with a sources list, package
# lists and caches of its own: the system's are neither read nor changed
private_apt() {
	local tool=$1
	shift
	"$tool" \
		-o Dir::Etc::sourcelist="$CACHE/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State::Lists="$CACHE/apt/lists" -o Dir::Cache::archives="$CACHE/apt/archives" \
		-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
		-o APT::Sandbox::User= -o APT::Update::Error-Mode=any \
		-o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@"
}

# download_debian_source: leaves the tarball's path in TARBALL
download_debian_source() {
	local log=$CACHE/log/fetch.log mirror codename suite suites keyring signed=''
	local -a tried=() packages
	step "source: $DEBIAN_PACKAGE from the machine's Debian mirror"
	: >"$log"
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ ! -e $keyring ] || signed="[signed-by=$keyring] "
	mkdir -p "$CACHE"/apt/{lists,archives}/partial

	while read -r mirror codename; do
		# The own release first; backports and the next release have what it lacks
		suites="$codename $codename-backports"
		[ "$codename" = trixie ] || suites+=" trixie"
		for suite in $suites; do
			tried+=("$suite")
			echo "deb $signed$mirror $suite main" >"$CACHE/apt/sources.list"
			private_apt apt-get update >>"$log" 2>&1 </dev/null || continue
			private_apt apt-cache show "$DEBIAN_PACKAGE" >>"$log" 2>&1 || continue
			rm -f "$CACHE"/download/"$DEBIAN_PACKAGE"_*.deb
			(cd "$CACHE/download" && private_apt apt-get download "$DEBIAN_PACKAGE") \
				>>"$log" 2>&1 </dev/null || continue
			packages=("$CACHE"/download/"$DEBIAN_PACKAGE"_*.deb)
			detail "$(basename "${packages[0]}") from $suite"
			rm -rf "$CACHE/download/unpacked"
			dpkg-deb -x "${packages[0]}" "$CACHE/download/unpacked" >>"$log" 2>&1 || continue
			TARBALL=$CACHE/download/unpacked/usr/src/$DEBIAN_PACKAGE.tar.xz
			[ ! -e "$TARBALL" ] || return 0
		done
	done < <(apt_mirrors)

	explain_full_disk "$log"
	fail "cannot get $DEBIAN_PACKAGE: the cache holds no kernel source, and apt could not download one (suites tried: ${tried[*]:-none, apt knows no Debian mirror})" \
		"Is there a network, and does 'apt-get update' work? Log: $log" \
		"A tree or tarball at hand does as well: qemu/vm fetch --source PATH"
}

# has_commit TREE: it is a git tree with a commit, and not a directory in one
has_commit() {
	git -C "$1" rev-parse -q --verify HEAD >/dev/null 2>&1 &&
		[ "$(git -C "$1" rev-parse --show-prefix)" = '' ]
}

# check_source PATH: a tree or tarball that can be imported
check_source() {
	local from=$1
	[ -e "$from" ] ||
		fail "no such file or directory: $from" \
			"--source takes a tree or a tarball of Linux $KERNEL_VERSION.$KERNEL_PATCHLEVEL.y."
	[ -r "$from" ] || fail "$from cannot be read by $(id -un): it belongs to $(stat -c '%U (%A)' "$from")"
	if [ -d "$from" ]; then
		check_version "$(makefile_version 2>/dev/null <"$from/Makefile")" "$from"
		if ! has_commit "$from" && { [ -e "$from/.config" ] || [ -e "$from/include/generated" ]; }; then
			fail "$from has been built in: its output would be imported as source" \
				"Run 'make mrproper' there, or give a tarball."
		fi
	else
		[ -f "$from" ] || fail "$from is neither a directory nor a file"
		check_version "$(tar -xOf "$from" --occurrence=1 --wildcards --no-wildcards-match-slash \
			'*/Makefile' 2>/dev/null | makefile_version)" "$from"
	fi
}

# unpack_source PATH DIRECTORY: what check_source() found right, copied into DIRECTORY
unpack_source() {
	local from=$1 to=$2 log=$CACHE/log/import.log
	if [ ! -d "$from" ]; then
		logged "$log" tar -xf "$from" -C "$to" --strip-components=1 --no-same-owner
	elif has_commit "$from"; then
		detail "the committed state of $from, without changes that are not committed"
		logged "$log" git -C "$from" archive -o "$to.tar" HEAD
		logged "$log" tar -xf "$to.tar" -C "$to"
		rm "$to.tar"
	else
		logged "$log" cp -a "$from/." "$to"
	fi
}

# import_source PATH: as a commit without parent, tagged with version and content
import_source() {
	local unpacked=$CACHE/download/importing log=$CACHE/log/import.log version tree commit tag
	check_source "$1"
	need_space "$CACHE" $SOURCE_SPACE_MB "the kernel's source"
	step "source: importing $1"
	# What an interrupted import left
	rm -rf "$unpacked" "$CACHE/linux.git/importing.index" "$CACHE/linux.git/importing.index.lock"
	mkdir -p "$unpacked"
	unpack_source "$1" "$unpacked"
	version=$(makefile_version <"$unpacked/Makefile")

	if ! linux_git rev-parse --git-dir >/dev/null 2>&1; then
		rm -rf "$CACHE/linux.git"
		logged "$log" git init -q --bare "$CACHE/linux.git"
	fi
	linux_git config core.autocrlf false
	linux_git config core.abbrev 12
	linux_git config gc.auto 0
	export GIT_INDEX_FILE=$CACHE/linux.git/importing.index
	# Forced: the kernel's .gitignore would leave files out that it ships itself.
	# The low threshold sends all files into one pack instead of 90000 objects.
	logged "$log" linux_git -c core.fsync=none -c core.bigFileThreshold=1 -c core.compression=1 \
		--work-tree="$unpacked" add -A -f .
	tree=$(linux_git write-tree)
	unset GIT_INDEX_FILE
	rm -f "$CACHE/linux.git/importing.index"
	tag=linux-$version-${tree:0:12}
	commit=$(GIT_AUTHOR_NAME=Linux GIT_AUTHOR_EMAIL=linux@localhost GIT_AUTHOR_DATE='@0 +0000' \
		GIT_COMMITTER_NAME=Linux GIT_COMMITTER_EMAIL=linux@localhost GIT_COMMITTER_DATE='@0 +0000' \
		linux_git commit-tree -m "Linux $version" "$tree")
	linux_git tag -f "$tag" "$commit" >/dev/null
	rm -rf "$unpacked"
	echo "$tag" >"$CACHE/source"
	detail "Linux $version, tag $tag"
}

# ensure_source [PATH]: a source is in the cache; PATH replaces the one in use
ensure_source() {
	local TARBALL='' tag
	if [ -n "${1:-}" ]; then
		import_source "$(realpath -m "$1")"
	elif tag=$(current_source) && [ -n "$tag" ]; then
		:
	else
		need_space "$CACHE" $SOURCE_SPACE_MB "the kernel's source"
		download_debian_source
		import_source "$TARBALL"
		# The package is kept, its content is in git now
		rm -rf "$CACHE/download/unpacked"
	fi
	SOURCE_TAG=$(current_source)
}

help_fetch() {
	cat <<-E
	Usage: qemu/vm fetch [--source TREE|TARBALL]

	Gets the source of Linux $KERNEL_VERSION.$KERNEL_PATCHLEVEL.y, checks its version and imports it as a git tree
	into the cache. Without --source: Debian's $DEBIAN_PACKAGE, from the machine's own mirror
	(the own release, its backports, or trixie), unless the cache has a source already.
	The system's apt configuration is left as it is.

	  --source PATH   a kernel tree (its committed state, if it is a git tree) or a tarball;
	                  it is used from then on, until another one is given

	The cache: $CACHE
	E
}

command_fetch() {
	local source=''
	while [ $# -gt 0 ]; do
		case $1 in
		--source) [ -n "${2:-}" ] || usage_error "--source needs a path" fetch
			source=$2
			shift 2 ;;
		*) usage_error "fetch: what is '$1'?" fetch ;;
		esac
	done
	open_cache
	install_packages
	lock_cache
	ensure_source "$source"
	step "source: $SOURCE_TAG is in use"
}
