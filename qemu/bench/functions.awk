# SPDX-License-Identifier: Apache-2.0
# A disassembly to "function TAB instructions TAB instructions of its cold part".
# The compiler's variants of a function count as one. Nops behind the last
# instruction are alignment of what follows.

/^[0-9a-f]+ <.*>:$/ {
	name = substr($2, 2, length($2) - 3)
	cold = sub(/\.cold(\.[0-9]+)?$/, "", name)
	gsub(/\.(constprop|isra|part)\.[0-9]+/, "", name)
	seen[name] = 1
	padding = 0
	next
}

/^[ ]*[0-9a-f]+:\t/ {
	if ($2 ~ /^(nop|xchg|data16|cs|int3)/) {
		padding++
		next
	}
	if (cold)
		colds[name] += padding + 1
	else
		instructions[name] += padding + 1
	padding = 0
}

END {
	for (name in seen)
		print name "\t" instructions[name] + 0 "\t" colds[name] + 0
}
