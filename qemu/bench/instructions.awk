# SPDX-License-Identifier: Apache-2.0
# awk -f instructions.awk PATHS DISASSEMBLY: the instructions of the functions of PATHS,
# "function TAB instruction", without what another address of the same code changes:
# two kernels can then be compared by diff.

FILENAME == ARGV[1] {
	if (NF && !/^#/)
		wanted[$1] = 1
	next
}

/^[0-9a-f]+ <.*>:$/ {
	name = substr($2, 2, length($2) - 3)
	cold = sub(/\.cold(\.[0-9]+)?$/, "", name)
	gsub(/\.(constprop|isra|part)\.[0-9]+/, "", name)
	next
}

# int3 is only alignment
name in wanted && /^[ ]*[0-9a-f]+:\t/ && $2 != "int3" {
	text = $0
	sub(/^[ ]*[0-9a-f]+:\t/, "", text)
	gsub(/-?0x[0-9a-f]+\(%rip\)/, "(%rip)", text)
	# The kernel's own addresses as numbers
	gsub(/0xffffffff[89][0-9a-f]+/, "ADDRESS", text)
	# "address <symbol+offset>", for jumps, calls and variables
	while (match(text, /[0-9a-f]+ <[^>]*>/)) {
		symbol = substr(text, RSTART, RLENGTH)
		sub(/^[0-9a-f]+ </, "", symbol)
		sub(/(\+0x[0-9a-f]+)?>$/, "", symbol)
		text = substr(text, 1, RSTART - 1) symbol substr(text, RSTART + RLENGTH)
	}
	gsub(/[ \t]+/, " ", text)
	sub(/ $/, "", text)
	print name (cold ? " (cold)" : "") "\t" text
}
