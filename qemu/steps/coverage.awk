# SPDX-License-Identifier: Apache-2.0
# awk -v goal=N -v tsv=FILE -v inlines=PATTERN -f coverage.awk COUNTS SOURCES...: of each function of
# the sources how many lines were run, and which were not. COUNTS has "FILE TAB line TAB count",
# for a line more than once if it was compiled into several objects. Of a header only
# functions count whose name matches PATTERN. FILE gets the table as data. Status 1 below the
# goal, in percent, or without a line.

function percent(part, whole) {
	return int(100 * part / whole)
}

function end_of_function() {
	if (name != "" && lines > 0 && (FILENAME !~ /\.h$/ || name ~ inlines)) {
		printf "  %-29s %4d of %4d  %3d %%%s\n", name, run, lines, percent(run, lines), missed == "" ? "" : "   not" missed
		print file, name, run, lines >tsv
		file_run += run
		file_lines += lines
	}
	name = missed = ""
	run = lines = 0
}

function end_of_file() {
	end_of_function()
	if (file != "")
		printf "%-31s %4d of %4d  %3d %%\n", file, file_run, file_lines, file_lines ? percent(file_run, file_lines) : 0
	all_run += file_run
	all_lines += file_lines
	file_run = file_lines = 0
}

BEGIN {
	FS = OFS = "\t"
	printf "" >tsv
}

FNR == NR {
	count[$1, $2] += $3
	known[$1] = 1
	next
}

FNR == 1 {
	end_of_file()
	for (file in known) {
		if (substr(FILENAME, length(FILENAME) - length(file)) == "/" file)
			break
		file = ""
	}
}

# A function's first line stands at the margin, and so does the bracket that ends it
/^[a-z].*[a-z0-9_]\(/ && !/;$/ && !/^static_assert/ {
	end_of_function()
	name = $0
	sub(/\(.*/, "", name)
	sub(/.*[ *]/, "", name)
}

(file, FNR) in count {
	lines++
	if (count[file, FNR] > 0)
		run++
	else
		missed = missed " " FNR
}

/^}/ {
	end_of_function()
}

END {
	end_of_file()
	if (!all_lines)
		exit 1
	printf "%-31s %4d of %4d  %3d %%\n", "option and message code", all_run, all_lines, percent(all_run, all_lines)
	exit 100 * all_run < goal * all_lines
}
