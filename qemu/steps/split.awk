# SPDX-License-Identifier: Apache-2.0
# awk -v guests=N -f split.awk DURATIONS TESTS: divides TESTS, one name per line, among guests
# that take about the same time. Prints "guest TAB test" for each test.
#
# DURATIONS has "seconds TAB test" of an earlier run. A test that it lacks gets the mean duration.
# Whole suites are assigned, the longest first, each to the guest with the least to do. A suite that
# takes longer than a guest's share is divided into its tests.

# suite_of TEST: the name without its last component
function suite_of(test) {
	sub(/\/[^\/]*$/, "", test)
	return test
}

BEGIN {
	FS = OFS = "\t"
}

FILENAME == ARGV[1] {
	known[$2] = $1
	next
}

{
	tests[++count] = $1
	if ($1 in known) {
		sum += known[$1]
		measured++
	}
}

END {
	mean = measured > 0 ? sum / measured : 1
	for (i = 1; i <= count; i++) {
		seconds[i] = tests[i] in known ? known[tests[i]] : mean
		suite = suite_of(tests[i])
		suite_seconds[suite] += seconds[i]
		total += seconds[i]
	}
	for (i = 1; i <= count; i++) {
		suite = suite_of(tests[i])
		# A name of a test as well as of a suite would be ambiguous: a suite's ends with a slash
		if (guests > 1 && suite_seconds[suite] > total / guests)
			unit = tests[i]
		else
			unit = suite "/"
		unit_of[i] = unit
		if (!(unit in weight))
			order[++units] = unit
		weight[unit] += seconds[i]
	}
	for (done = 0; done < units; done++) {
		longest = ""
		for (i = 1; i <= units; i++)
			if (!(order[i] in guest_of) && (longest == "" || weight[order[i]] > weight[longest]))
				longest = order[i]
		chosen = 1
		for (guest = 2; guest <= guests; guest++)
			if (load[guest] < load[chosen])
				chosen = guest
		load[chosen] += weight[longest]
		guest_of[longest] = chosen
	}
	for (i = 1; i <= count; i++)
		print guest_of[unit_of[i]], tests[i]
}
