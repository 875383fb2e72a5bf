# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# docs/man/traits.7: it is a manual page without faults, its programs are the files of
# Examples, and it leaves out no name of the interface.
# Between backquotes are names in Markdown, and no commands
# shellcheck disable=SC2016

PAGE=$SOURCE_ROOT/docs/man/traits.7
EXAMPLES=$SOURCE_ROOT/Examples

# rendered PAGE: the text as it is read, in lines that are long enough for any program. On
# standard error is what groff finds fault with.
rendered() {
	groff -t -man -ww -Tutf8 -P-cbou -rLL=200n "$1"
}

# embedded PAGE: the files, below Examples, whose text is in the page
embedded() {
	sed -nE 's/^\.\\" SRC BEGIN \((.*)\)$/\1/p' "$1"
}

# source_of PAGE FILE: what the page has between the marks of this file
source_of() {
	awk -v mark=".\\\\\" SRC BEGIN ($2)" '
		$0 == mark { inside = 1; next }
		/^\.\\" SRC END$/ { inside = 0 }
		inside' "$1"
}

# as_source FILE: what that should be
as_source() {
	echo .EX
	sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/'/\\\\[aq]/g" -e 's/`/\\[ga]/g' -e 's/\^/\\[ha]/g' \
		-e 's/~/\\[ti]/g' -e 's/^\./\\\&./' "$1"
	echo .EE
}

# is_shown FILE TEXT: the file is a part of the text, line by line; a page's text is indented by 7
is_shown() {
	local text
	text=$'\n'$(sed 's/^       //' "$2")$'\n'
	[[ $text == *$'\n'"$(cat "$1")"$'\n'* ]] || {
		echo "as it is read, the page does not have the lines of $1"
		return 1
	}
}

# names_of_header FILE: the constants that it defines, guards and ends of enumerations apart
names_of_header() {
	sed -nE -e 's/^#define[ \t]+([A-Z][A-Z0-9_]*)[ \t]+.*/\1/p' -e 's/^\t([A-Z][A-Z0-9_]*)( = .*)?,$/\1/p' "$1"
}

# names_of_sockets FILE: of uapi.md, what stands before the registry: errors and constants
names_of_sockets() {
	sed '/^## The registry/,$d' "$1" | grep -oE '`[^`]*`' |
		grep -oE '\b(E[A-Z]{3,}|[A-Z][A-Z0-9]*_[A-Z0-9_]+)\b' | sort -u
}

# unnamed TEXT: those of standard input that the text, a file, does not have as a word
unnamed() {
	local name
	while read -r name; do
		grep -qw -- "$name" "$1" || echo "$name"
	done
}

test_the_page_is_rendered_without_warnings() {
	rendered "$PAGE" >"$WORK/page" 2>"$WORK/warnings"
	same '' "$(cat "$WORK/warnings")"
	[ "$(wc -l <"$WORK/page")" -ge 300 ]
	# Names of sections in the order of man-pages(7)
	same 'NAME SYNOPSIS DESCRIPTION ERRORS VERSIONS STANDARDS NOTES CAVEATS EXAMPLES SEE ALSO' \
		"$(sed -nE 's/^\.SH //p' "$PAGE" | paste -sd ' ')"
	same '' "$(awk 'length > 80 || /[ \t]$/ { print FNR ": " $0 }' "$PAGE")"
	# Such warnings are seen
	printf '.TH x 7\n.SH NAME\n\\[nothing]\n' >"$WORK/wrong.7"
	rendered "$WORK/wrong.7" 2>"$WORK/warnings" >/dev/null
	grep warning "$WORK/warnings"
}

test_its_programs_are_the_files_of_examples() {
	local file
	rendered "$PAGE" >"$WORK/page"
	same "$(cd "$EXAMPLES" && find . -type f -printf '%P\n' | sort)" "$(embedded "$PAGE" | sort)"
	while read -r file; do
		# As the page is written: what is wanted can be put into it
		same "$(as_source "$EXAMPLES/$file")" "$(source_of "$PAGE" "$file")"
		is_shown "$EXAMPLES/$file" "$WORK/page"
	done < <(embedded "$PAGE")
}

test_a_line_that_differs_is_found() {
	printf '%s\n' "int x = '\\n' - ~0;" '.y' >"$WORK/x.c"
	{
		printf '.TH x 7 2000-01-01 x\n.SH NAME\nx \\- y\n.SH EXAMPLES\n.\\" SRC BEGIN (x.c)\n'
		as_source "$WORK/x.c"
		printf '.\\" SRC END\n'
	} >"$WORK/x.7"
	rendered "$WORK/x.7" >"$WORK/page"
	same x.c "$(embedded "$WORK/x.7")"
	same "$(as_source "$WORK/x.c")" "$(source_of "$WORK/x.7" x.c)"
	is_shown "$WORK/x.c" "$WORK/page"
	echo 'int z;' >>"$WORK/x.c"
	! is_shown "$WORK/x.c" "$WORK/page" || return 1
	[ "$(as_source "$WORK/x.c")" != "$(source_of "$WORK/x.7" x.c)" ]
}

test_its_programs_in_c_compile_without_warnings() {
	local file count=0
	while read -r file; do
		cc -Wall -Wextra -Werror -std=gnu11 -O2 -I "$SOURCE_ROOT/Sources/CTraits/include" \
			"$EXAMPLES/$file" -o "$WORK/program"
		count=$((count + 1))
	done < <(embedded "$PAGE" | grep '\.c$')
	same 3 "$count"
	# The compiler of the package sees those in Swift, if they are targets
	while read -r file; do
		grep -q "path: \"Examples/$(dirname "$file")\"" "$SOURCE_ROOT/Package.swift" || {
			echo "$file is of no target of Package.swift"
			return 1
		}
	done < <(embedded "$PAGE")
}

test_no_name_of_the_interface_is_left_out() {
	local name headers=$SOURCE_ROOT/Sources/CTraits/include/linux
	{
		names_of_header "$headers/traits.h"
		names_of_header "$headers/traits_netlink.h"
		names_of_sockets "$SOURCE_ROOT/docs/uapi.md"
	} >"$WORK/names"
	# All of them, and not the first of a kind
	for name in SOL_TRAITS TRAITS_VALUE_MAX TRAITS_A_STATS_LOST TRAITS_KEY_FLAGS_CROSS_NETNS EOPNOTSUPP \
		ENOBUFS MSG_ERRQUEUE CAP_NET_RAW; do
		grep -qx "$name" "$WORK/names"
	done
	rendered "$PAGE" >"$WORK/page"
	same '' "$(unnamed "$WORK/page" <"$WORK/names")"
	same ENOTTHERE "$(echo ENOTTHERE | unnamed "$WORK/page")"
	# Each error has an entry
	same 'EFAULT EINVAL ENOBUFS ENOENT ENOMEM ENOPROTOOPT ENOSPC EOPNOTSUPP EPERM' \
		"$(sed -n '/^\.SH ERRORS/,/^\.SS Registry/p' "$PAGE" | sed -nE 's/^\.B (E[A-Z]+)$/\1/p' | sort -u | paste -sd ' ')"
}
