# SPDX-License-Identifier: Apache-2.0
# store.tsv to the table that is shown: instructions of each layout side by side.

BEGIN {
	FS = "\t"
	split("get replace insert delete", operations, " ")
}

NR > 1 {
	where = $2 SUBSEP $3
	if (!(where in seen)) {
		seen[where] = 1
		places[++count] = where
	}
	value[$1, $2, $3, $4] = $5
	bytes[$1, $2, $3] = $6
}

END {
	print "size  keys  operation  traits  packed   fixed  traits/packed  traits/fixed"
	for (i = 1; i <= count; i++) {
		split(places[i], place, SUBSEP)
		for (j = 1; j <= 4; j++) {
			row = place[1] SUBSEP place[2] SUBSEP operations[j]
			t = value["traits" SUBSEP row]
			p = value["packed" SUBSEP row]
			f = value["fixed" SUBSEP row]
			printf "%4d  %4d  %-9s %7.1f %7.1f %7.1f %14.2f %13.2f\n", place[1], place[2], operations[j], t, p, f, t / p, t / f
		}
	}
	print ""
	print "size  keys  bytes: traits  packed   fixed"
	for (i = 1; i <= count; i++) {
		split(places[i], place, SUBSEP)
		printf "%4d  %4d  %13d %7d %7d\n", place[1], place[2], \
			bytes["traits", place[1], place[2]], bytes["packed", place[1], place[2]], bytes["fixed", place[1], place[2]]
	}
}
