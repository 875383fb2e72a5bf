# SPDX-License-Identifier: Apache-2.0
# With median.awk, and -v each=TEXT: lines of print_turn() ("turn, scenario, variant, packets,
# instructions a packet, something else that each had") to medians over turns. What a variant
# costs is the median of the differences to the first one of its scenario, in the same turn,
# with its 95 % interval. TEXT says what the last column is.

BEGIN { FS = "\t" }

!(($2, $3) in seen) {
	if (!($2 in first))
		first[$2] = $3
	seen[$2, $3] = 1
	scenario[++count] = $2
	variant[count] = $3
}

{
	result[$2, $3, $1] = $5
	if ($1 > turns)
		turns = $1
	sum[$2, $3] += $6
}

END {
	printf "%-11s %-10s %12s %11s %19s %9s   %s\n", "scenario", "traits", "instructions", "difference", "95 %", "", each
	for (i = 1; i <= count; i++) {
		for (turn = 1; turn <= turns; turn++)
			values[turn] = result[scenario[i], variant[i], turn]
		summarize(turns)
		printf "%-11s %-10s %12.1f", scenario[i], variant[i], median
		if (variant[i] == first[scenario[i]]) {
			none = median
			printf " %11s %19s %9s", "", "", ""
		} else {
			for (turn = 1; turn <= turns; turn++)
				values[turn] = result[scenario[i], variant[i], turn] - result[scenario[i], first[scenario[i]], turn]
			summarize(turns)
			printf " %+11.1f %19s %+7.2f %%", median, sprintf("%+.1f .. %+.1f", low, high), median / none * 100
		}
		printf "   %.2f\n", sum[scenario[i], variant[i]] / turns
	}
}
