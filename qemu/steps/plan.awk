# SPDX-License-Identifier: Apache-2.0
# awk -f plan.awk PLAN RAN: compares which guest was to run each test, and which did. Both have
# "guest TAB test". Prints a line of tests.tsv, a failure, for each difference.

BEGIN {
	FS = OFS = "\t"
}

FILENAME == ARGV[1] {
	wanted[$2]++
	guest[$2] = $1
	next
}

{
	ran[$2]++
	guests[$2] = guests[$2] (guests[$2] != "" ? " and " : "") $1
}

END {
	for (test in wanted)
		if (ran[test] + 0 < wanted[test])
			print "failed", test, "guest " guest[test] " was to run it, and did not begin to"
	for (test in ran)
		if (!(test in wanted))
			print "failed", test, "the bundle does not list it, but guest " guests[test] " ran it"
		else if (ran[test] > wanted[test])
			print "failed", test, "ran more than once: in guests " guests[test]
}
