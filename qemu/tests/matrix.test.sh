# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# docs/testing.md and docs/semantics.md say which test shows what. Each test that they
# name is there.
# Between backquotes are names in Markdown, and no commands
# shellcheck disable=SC2016

# named_tests FILE: SUITE.function, one a line; not the names of files
named_tests() {
	grep -oE '`[A-Za-z0-9]+Tests\.[A-Za-z0-9]+`' "$1" | tr -d '`' | grep -v '\.swift$' | sort -u
}

# written_tests DIRECTORY: SUITE.function of all test functions of Swift Testing below it:
# the function behind a @Test, in the type that a line "struct SUITE {" began last
written_tests() {
	find "$1" -name '*.swift' -exec awk '
		FNR == 1 { suite = ""; waiting = 0 }
		match($0, /^ *(final )?(struct|class|enum|actor) [A-Za-z0-9]+Tests[ :{]/) {
			suite = $0
			sub(/^ *(final )?(struct|class|enum|actor) /, "", suite)
			sub(/[ :{].*/, "", suite)
		}
		/^ *@Test/ { waiting = 1 }
		waiting && match($0, /^ *(static )?func [A-Za-z0-9]+/) {
			name = substr($0, 1, RLENGTH)
			sub(/.* /, "", name)
			print suite "." name
			waiting = 0
		}' {} + | sort -u
}

# missing_tests FILE DIRECTORY: what FILE names and DIRECTORY has not
missing_tests() {
	comm -23 <(named_tests "$1") <(written_tests "$2")
}

test_each_test_that_the_documentation_names_is_there() {
	local named
	named=$(named_tests "$SOURCE_ROOT/docs/testing.md" | wc -l)
	echo "$named tests are named"
	[ "$named" -ge 60 ]
	same '' "$(missing_tests "$SOURCE_ROOT/docs/testing.md" "$SOURCE_ROOT/Tests")"
}

test_each_cell_of_the_tables_names_a_test_or_says_why_not() {
	# Of a table whose first line has the kinds of sockets
	awk -F ' *\\| *' '
		/^\| \| (UDP|TCP): / { inside = 1; cells = NF; next }
		!/^\|/ { inside = 0 }
		inside && !/^\|---/ {
			rows++
			if (NF != cells) { print "cells: " $0; failed = 1 }
			for (i = 3; i < NF; i++)
				if ($i != "n/a" && $i !~ /^(refused: )?`[^`]*Tests\./) {
					print $2 ": " $i
					failed = 1
				}
		}
		END { print rows " rows"; exit failed || rows < 30 }' "$SOURCE_ROOT/docs/testing.md"
}

test_a_test_that_is_gone_or_none_is_found() {
	mkdir "$WORK/swift"
	cat >"$WORK/swift/One.swift" <<-'END'
		@Suite("One")
		struct OneTests {
		  @Test("a", arguments: [1, 2])
		  func first(number: Int) {}

		  @Test(
		    "b, in which a func is spoken of",
		    arguments: [1])
		  func second(number: Int) {}

		  func helper() {}
		}
	END
	printf '%s\n' 'see `OneTests.first`, `OneTests.second`' >"$WORK/all.md"
	same '' "$(missing_tests "$WORK/all.md" "$WORK/swift")"
	printf '%s\n' '`OneTests.first` `OneTests.helper` `OneTests.third` `TwoTests.first`' >"$WORK/gone.md"
	same $'OneTests.helper\nOneTests.third\nTwoTests.first' "$(missing_tests "$WORK/gone.md" "$WORK/swift")"
}

# named_cases FILE: KUnit's cases that it names, as "KUnit `one`, `other`"
named_cases() {
	grep -oE "KUnit('s)? \`[a-z0-9_]+\`(, \`[a-z0-9_]+\`)*" "$1" | grep -oE '`[a-z0-9_]+`' | tr -d '`' | sort -u
}

# written_cases DIRECTORY: those of the patches below it
written_cases() {
	find "$1" -name '*.patch' -exec sed -nE 's/^\+\tKUNIT_CASE(_SLOW)?\(([a-z0-9_]+)\),$/\2/p' {} + | sort -u
}

# named_suites FILE: the guest's suites that it names, as "guest suites "One", "Other" (...)"
named_suites() {
	grep -oE '[Gg]uest suites? "[^|]*' "$1" | grep -oE '"[^"]*"' | sort -u
}

# written_suites DIRECTORY: those of Swift Testing below it
written_suites() {
	find "$1" -name '*.swift' -exec cat {} + | tr '\n' ' ' | grep -oE '@Suite\( *"[^"]*"' |
		sed -E 's/^@Suite\( *//' | sort -u
}

test_each_test_of_what_operations_do_is_there() {
	local file=$SOURCE_ROOT/docs/semantics.md cases suites
	cases=$(named_cases "$file" | wc -l)
	suites=$(named_suites "$file" | wc -l)
	echo "$cases cases and $suites suites are named"
	[ "$cases" -ge 25 ]
	[ "$suites" -ge 8 ]
	same '' "$(comm -23 <(named_cases "$file") <(written_cases "$SOURCE_ROOT/kernel-patches"))"
	same '' "$(comm -23 <(named_suites "$file") <(written_suites "$SOURCE_ROOT/Tests/GuestTests"))"
}

test_a_case_or_suite_that_is_gone_is_found() {
	mkdir "$WORK/there"
	printf '%s\n' $'+\tKUNIT_CASE(a_first),' $'+\tKUNIT_CASE_SLOW(a_second),' $' \tKUNIT_CASE(of_the_base),' >"$WORK/there/1.patch"
	printf '%s\n' '@Suite("One", .serialized)' 'struct OneTests {}' '@Suite(' '  "Two")' >"$WORK/there/Two.swift"
	printf '%s\n' '| a | `code()` | KUnit `a_first`, `a_third` (itself); guest suites "One" (a, b), "Three" |' \
		"KUnit's \`a_second\`; guest suite \"Two\"" >"$WORK/named.md"
	same $'a_first\na_second\na_third' "$(named_cases "$WORK/named.md")"
	same a_third "$(comm -23 <(named_cases "$WORK/named.md") <(written_cases "$WORK/there"))"
	same '"Three"' "$(comm -23 <(named_suites "$WORK/named.md") <(written_suites "$WORK/there"))"
}
