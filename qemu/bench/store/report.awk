# SPDX-License-Identifier: Apache-2.0
# memory.tsv and callgrind's files to "layout, value size, keys, operation, instructions
# an operation, bytes in use": what calling alone costs ("nothing") is taken off.

BEGIN { OFS = "\t" }

FILENAME ~ /memory\.tsv$/ { memory[$1, $2, $3] = $4; next }

/^desc: Trigger: Client Request: / {
	layout = $5
	size = $6
	keys = $7
	operation = $8
	next
}

/^summary: / && layout != "" {
	instructions[layout, size, keys, operation] = $2
	if (layout != "nothing")
		rows[++count] = layout SUBSEP size SUBSEP keys SUBSEP operation
	layout = ""
}

END {
	print "layout", "size", "keys", "operation", "instructions", "bytes"
	for (i = 1; i <= count; i++) {
		split(rows[i], row, SUBSEP)
		print row[1], row[2], row[3], row[4], \
			sprintf("%.1f", (instructions[rows[i]] - instructions["nothing", row[2], row[3], row[4]]) / row[3]), \
			memory[row[1], row[2], row[3]]
	}
}
