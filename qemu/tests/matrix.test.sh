# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# docs/testing.md says which test shows what. Each test that it names is there.
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
