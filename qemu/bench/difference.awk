# SPDX-License-Identifier: Apache-2.0
# awk -v unpatched=FILE -v patched=FILE -v branches=FILE -f difference.awk PATHS: what
# the patches add to each function that a packet passes; static.tsv gets every
# function that differs or has a branch.

function stem(name) {
	sub(/\.cold(\.[0-9]+)?$/, "", name)
	gsub(/\.(constprop|isra|part)\.[0-9]+/, "", name)
	return name
}

function row(name) {
	return name "\t" before[name] + 0 "\t" after[name] + 0 "\t" after[name] - before[name] "\t" \
		cold_after[name] - cold_before[name] "\t" nops[name] + 0
}

function differs(name) {
	return before[name] != after[name] || cold_before[name] != cold_after[name] || name in nops
}

BEGIN {
	FS = "\t"
	while ((getline <unpatched) > 0) {
		before[$1] = $2
		cold_before[$1] = $3
		all[$1] = 1
	}
	while ((getline <patched) > 0) {
		after[$1] = $2
		cold_after[$1] = $3
		all[$1] = 1
	}
	while ((getline <branches) > 0)
		nops[stem($1)] += $2

	print "function\tunpatched\tpatched\tdifference\tcold\tnops" >tsv
	for (name in all)
		if (differs(name)) {
			print row(name) >tsv
			changed++
			nop_sum += nops[name]
		}
	close(tsv)
	printf "%-34s %9s %9s %10s %6s %5s\n", "function", "unpatched", "patched", "difference", "cold", "nops"
}

/^# SPDX-/ { next }

/^#/ {
	print ""
	print
	next
}

NF && !($1 in all) {
	print $1 " (in its callers)"
	next
}

NF {
	printf "%-34s %9d %9d %+10d %+6d %5d\n", $1, before[$1], after[$1], after[$1] - before[$1], \
		cold_after[$1] - cold_before[$1], nops[$1]
}

END {
	printf "\n%d functions of the whole kernel differ or have a branch; they have %d nops.\n", changed, nop_sum
}
