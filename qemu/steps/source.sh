# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Linux 6.12's source: from a given tree or tarball, or from Debian's package;
# imported into a git repository in the cache.

KERNEL_VERSION=6
KERNEL_PATCHLEVEL=12
SERIES_DIRECTORY=$ROOT/kernel-patches/linux-$KERNEL_VERSION.$KERNEL_PATCHLEVEL
DEBIAN_PACKAGE=linux-source-$KERNEL_VERSION.$KERNEL_PATCHLEVEL

# The version that --kernel or "fetch --version" names; nothing if any will do
KERNEL=
# The kernel in use: set by use_source
SOURCE_TAG=
VERSION=

# An unpacked tree, its copy as git objects, and one worktree at a time
SOURCE_SPACE_MB=4500

# linux_git ARGUMENTS...: git on the cache's repository. The user's own
# configuration stays out, so that objects and messages are the same everywhere.
linux_git() {
	clean_git --git-dir="$CACHE/linux.git" "$@"
}

# clean_git ARGUMENTS...: git without the user's configuration
clean_git() {
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null git "$@"
}

# tree_git FLAVOUR ARGUMENTS...: the same inside a worktree
tree_git() {
	local flavour=$1
	shift
	clean_git -C "$TREES/$flavour" "$@"
}

# makefile_version: reads a kernel Makefile, prints VERSION.PATCHLEVEL.SUBLEVEL
makefile_version() {
	awk -F ' *= *' '
		# To the end of the input: the command that writes it must not die of a closed pipe
		FNR > 10 { next }
		$1 == "VERSION" { version = $2 }
		$1 == "PATCHLEVEL" { patchlevel = $2 }
		$1 == "SUBLEVEL" { sublevel = $2 }
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

# check_wanted_version OPTION VERSION: it has the form of a version that the series is for
check_wanted_version() {
	[[ $2 =~ ^$KERNEL_VERSION\.$KERNEL_PATCHLEVEL\.[0-9]+$ ]] ||
		usage_error "$1 needs a version of Linux $KERNEL_VERSION.$KERNEL_PATCHLEVEL such as $KERNEL_VERSION.$KERNEL_PATCHLEVEL.117, not '$2'" "$SUBCOMMAND"
}

# tested_versions: the kernels that the series was tested on, one per line, the newest last
tested_versions() {
	sed -E 's/#.*//; /^[[:space:]]*$/d' "$ROOT/kernel-patches/tested"
}

# existing_tag FILE: the tag that FILE names, if the repository has it
existing_tag() {
	local tag
	tag=$(cat "$1" 2>/dev/null) && linux_git rev-parse -q --verify "refs/tags/$tag" >/dev/null 2>&1 && echo "$tag"
}

# cached_source: the tag of the source that this run needs, nothing if the cache does not
# have it. With --kernel a source of that version, the one in use first. Else the one in use or,
# if none is, the newest tested version: no mirror has to be asked for that.
cached_source() {
	local tag version=$KERNEL
	tag=$(existing_tag "$CACHE/source") || tag=''
	[ -n "$tag" ] || version=${version:-$(tested_versions | tail -n 1)}
	if [ -n "$version" ] && [[ $tag != linux-$version-* ]]; then
		tag=$(existing_tag "$CACHE/$version/source") ||
			tag=$(linux_git for-each-ref --format='%(refname:strip=2)' "refs/tags/linux-$version-*" 2>/dev/null | tail -n 1) || tag=''
	fi
	[ -z "$tag" ] || echo "$tag"
}

# use_source TAG: sets SOURCE_TAG, and where trees, objects and logs of that version are
use_source() {
	SOURCE_TAG=$1
	VERSION=${1#linux-}
	VERSION=${VERSION%-*}
	TREES=$CACHE/$VERSION/tree
	BUILDS=$CACHE/$VERSION/build
	LOGS=$CACHE/$VERSION/log
	mkdir -p "$TREES" "$BUILDS" "$LOGS"
}

# use_cached_source: the same for the source that this run needs; status 1 if the cache does
# not have it
use_cached_source() {
	local tag
	tag=$(cached_source)
	[ -n "$tag" ] && use_source "$tag"
}

# debian_archives: "LABEL URI RELEASE" of each Debian archive that this machine uses. The
# package lists tell the label. A system that has not fetched any lists yet has only names.
debian_archives() {
	local archives
	# The variables are apt's, not the shell's
	# shellcheck disable=SC2016
	archives=$(apt-get indextargets --format '$(LABEL) $(REPO_URI) $(RELEASE)' 'Identifier: Packages' 2>/dev/null |
		awk '$1 == "Debian" || $1 == "Debian-Security"' | sort -u) || archives=''
	[ -n "$archives" ] || [ "$(os_release ID)" != debian ] ||
		archives=$(apt-get update --print-uris 2>/dev/null |
			sed -nE "s,^'(.*/)dists/([^/]+)/InRelease'.*,\1 \2,p" |
			awk '{ print $2 ~ /-security$/ ? "Debian-Security" : "Debian", $0 }' | sort -u) || archives=''
	[ -z "$archives" ] || echo "$archives"
}

# debian_suites: "URI SUITE" of each suite that may offer the source: those of the machine's own
# release and of trixie. A suite that does not exist does no harm. Only bookworm-backports
# has 6.12.95.
debian_suites() {
	debian_archives | awk -v explicit="$KERNEL" '
		function suite(uri, name) {
			if (!((uri, name) in seen)) print uri, name
			seen[uri, name] = 1
		}
		{ sub(/-.*/, "", $3) }
		$1 == "Debian" {
			count = split($3 " trixie", codenames, " ")
			for (i = 1; i <= count; i++) {
				suite($2, codenames[i])
				suite($2, codenames[i] "-updates")
				suite($2, codenames[i] "-backports")
			}
			if (explicit != "") suite($2, "bookworm-backports")
		}
		$1 == "Debian-Security" {
			suite($2, $3 "-security")
			suite($2, "trixie-security")
		}'
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
		-o APT::Sandbox::User= -o APT::Update::Error-Mode=any -o Acquire::Languages=none \
		-o Acquire::Retries=2 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@"
}

# system_apt apt-get|apt-cache ARGUMENTS...: apt as the system has it
system_apt() {
	"$@"
}

# What ask_mirrors found: "VERSION PACKAGE-VERSION SUITE" per line, the newest last
OFFERED=
SUITES_ASKED=
SOURCE_APT=

# ask_mirrors: which versions of the source does a mirror of this machine offer? A system
# without a Debian mirror is asked for what its own archives offer.
ask_mirrors() {
	local log=$CACHE/log/fetch.log suites keyring signed=''
	[ -z "$SOURCE_APT" ] || return 0
	step "source: which versions of $DEBIAN_PACKAGE are offered?"
	: >"$log"
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ ! -e $keyring ] || signed="[signed-by=$keyring] "
	suites=$(debian_suites)
	SUITES_ASKED=$(cut -d ' ' -f 2 <<<"$suites" | paste -sd ' ')
	SOURCE_APT=private_apt
	if [ -n "$suites" ]; then
		mkdir -p "$CACHE"/apt/{lists,archives}/partial
		sed "s,^,deb $signed,; s,\$, main," <<<"$suites" >"$CACHE/apt/sources.list"
		# It fails if one suite does not exist. The others are there then.
		private_apt apt-get update >>"$log" 2>&1 </dev/null || true
	else
		SOURCE_APT=system_apt
	fi
	OFFERED=$({ $SOURCE_APT apt-cache madison "$DEBIAN_PACKAGE" 2>>"$log" || true; } |
		awk -F ' *[|] *' -v wanted="^${KERNEL_VERSION}[.]${KERNEL_PATCHLEVEL}[.][0-9]+\$" '
			{ version = $2; sub(/[-+~].*/, "", version); split($3, place, " ") }
			version ~ wanted { print version, $2, place[2] }' | sort -V)
}

# find_offer: sets OFFER to the line of OFFERED that is to be fetched: the version that
# --kernel or --version names, else the newest one that was tested, else the newest
find_offer() {
	local version offered
	ask_mirrors
	[ -n "$OFFERED" ] ||
		if [ -n "$SUITES_ASKED" ]; then
			explain_full_disk "$CACHE/log/fetch.log"
			fail "cannot get $DEBIAN_PACKAGE: the cache holds no kernel source${KERNEL:+ of $KERNEL}, and apt found none (suites asked: $SUITES_ASKED)" \
				"$(grep -m 1 '^E:' "$CACHE/log/fetch.log")" \
				"Is there a network, and does 'apt-get update' work? Log: $CACHE/log/fetch.log" \
				"A tree or tarball of Linux $KERNEL_VERSION.$KERNEL_PATCHLEVEL.y does as well: qemu/vm fetch --source PATH"
		else
			fail "no kernel source: $(os_release PRETTY_NAME) offers no $DEBIAN_PACKAGE, apt knows no Debian mirror, and the cache holds no source${KERNEL:+ of $KERNEL}" \
				"Get a tree or tarball of Linux $KERNEL_VERSION.$KERNEL_PATCHLEVEL.y, from kernel.org for example, then:" \
				"  qemu/vm fetch --source PATH"
		fi
	offered=$(cut -d ' ' -f 1 <<<"$OFFERED" | sort -uV | paste -sd ' ')
	if [ -n "$KERNEL" ]; then
		version=$KERNEL
		grep -q "^$version " <<<"$OFFERED" ||
			fail "Linux $version is not in the cache, and no suite offers it (suites asked: ${SUITES_ASKED:-those of this system})" \
				"Offered are: $offered" \
				"A tree or tarball at hand does as well: qemu/vm fetch --source PATH"
	else
		version=$(awk 'NR == FNR { offered[$1] = 1; next } $1 in offered { newest = $1 } END { print newest }' \
			<(echo "$OFFERED") <(tested_versions))
		[ -n "$version" ] || version=${offered##* }
	fi
	OFFER=$(grep "^$version " <<<"$OFFERED" | tail -n 1)
}

# download_debian_source: leaves the tarball's path in TARBALL
download_debian_source() {
	local log=$CACHE/log/fetch.log version package suite OFFER
	local -a packages
	find_offer
	read -r version package suite <<<"$OFFER"
	step "source: $DEBIAN_PACKAGE $package from $suite"
	tested_versions | grep -xF "$version" >/dev/null ||
		detail "Linux $version was not tested with the series, the newest tested is $(tested_versions | tail -n 1)"
	rm -rf "$CACHE/download/unpacked" "$CACHE"/download/"$DEBIAN_PACKAGE"_*.deb
	if (cd "$CACHE/download" && $SOURCE_APT apt-get download "$DEBIAN_PACKAGE=$package") >>"$log" 2>&1 </dev/null; then
		packages=("$CACHE"/download/"$DEBIAN_PACKAGE"_*.deb)
		logged "$log" dpkg-deb -x "${packages[0]}" "$CACHE/download/unpacked"
		rm "${packages[0]}"
		TARBALL=$CACHE/download/unpacked/usr/src/$DEBIAN_PACKAGE.tar.xz
		[ ! -e "$TARBALL" ] || return 0
	fi
	explain_full_disk "$log"
	fail "cannot get $DEBIAN_PACKAGE $package: apt could not download it from $suite" \
		"$(grep -m 1 '^E:' "$log")" \
		"Is there a network? Log: $log" \
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
	use_source "$tag"
	write_whole "$tag" "$CACHE/$version/source"
	detail "Linux $version, tag $tag"
}

# write_whole TEXT FILE: another run reads the old text or the new one, and no half
write_whole() {
	[ "$(cat "$2" 2>/dev/null)" != "$1" ] || return 0
	echo "$1" >"$2.$$"
	mv "$2.$$" "$2"
}

# ensure_source [PATH]: the source that this run needs is in the cache; PATH replaces the one
# in use. A version that was asked for with --kernel is for this run only.
ensure_source() {
	if [ -n "${1:-}" ]; then
		with_cache_lock import_source "$(realpath -m "$1")"
	elif ! use_cached_source; then
		with_cache_lock fetch_source
	fi
	if [ -z "$KERNEL" ] || [ "$SUBCOMMAND" = fetch ]; then
		write_whole "$SOURCE_TAG" "$CACHE/source"
	fi
	leave_former_layout
}

# fetch_source: from Debian. Another run may have fetched it meanwhile.
fetch_source() {
	local TARBALL=''
	! use_cached_source || return 0
	need_space "$CACHE" $SOURCE_SPACE_MB "the kernel's source"
	download_debian_source
	import_source "$TARBALL"
	rm -rf "$CACHE/download/unpacked"
}

# leave_former_layout: earlier versions kept one tree for all kernels. Does not delete it: it may
# hold uncommitted work.
leave_former_layout() {
	[ -d "$CACHE/tree" ] || return 0
	# A branch of this name would be in the way of packet-traits/VERSION
	! linux_git rev-parse -q --verify refs/heads/packet-traits >/dev/null ||
		with_cache_lock linux_git branch -m packet-traits former-packet-traits
	detail "$CACHE/tree and $CACHE/build are no longer used: delete them, unless there is work of yours in tree/patched"
}

help_fetch() {
	cat <<-E
	Usage: qemu/vm fetch [--version $KERNEL_VERSION.$KERNEL_PATCHLEVEL.N | --source TREE|TARBALL]

	Gets the source of Linux $KERNEL_VERSION.$KERNEL_PATCHLEVEL.y, checks its version and imports it as a git tree
	into the cache. Without an option: Debian's $DEBIAN_PACKAGE, from the machine's own mirrors
	(suites of the machine's release and of trixie), unless the cache has a source already. Takes the
	newest version that was tested with the series, or if none is offered the newest one.
	The system's apt configuration is left as it is.

	  --version $KERNEL_VERSION.$KERNEL_PATCHLEVEL.N  that version of the package
	  --source PATH     a kernel tree (its committed state, if it is a git tree) or a tarball

	What is given is used from then on, until something else is given. '--kernel $KERNEL_VERSION.$KERNEL_PATCHLEVEL.N' of the
	other commands takes another version for one run.

	Tested: $(tested_versions | paste -sd ' ')

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
		--version) check_wanted_version --version "${2:-}"
			KERNEL=$2
			shift 2 ;;
		*) usage_error "fetch: what is '$1'?" fetch ;;
		esac
	done
	[ -z "$source" ] || [ -z "$KERNEL" ] || usage_error "fetch: either --source or --version" fetch
	open_cache
	local -a wants=()
	if [ -n "$source" ]; then
		check_source "$(realpath -m "$source")"
	else
		wants=(source)
	fi
	check_machine "${wants[@]}"
	install_packages
	ensure_source "$source"
	step "source: $SOURCE_TAG is in use"
}
