# SPDX-License-Identifier: Apache-2.0
# boots.tsv ("boot, kernel, scenario, packets, instructions a packet, their mean") to
# medians over boots, each with its 95 % interval, which follows from the order of the
# values alone: as many of them are cut off at both ends as a fair coin allows. What
# the patches add is the median of the differences of boots that ran in turn.

# sort N: values[1 .. N] in ascending order
function sort(n,	i, j, x) {
	for (i = 2; i <= n; i++) {
		x = values[i]
		for (j = i - 1; j >= 1 && values[j] > x; j--)
			values[j + 1] = values[j]
		values[j + 1] = x
	}
}

# The number to cut off at each end of N: the chance that the median lies outside is
# twice that of at most CUT heads
function cut(n,	k, term, sum) {
	term = 0.5 ^ n
	sum = term
	for (k = 0; 2 * sum <= 0.05; k++) {
		term = term * (n - k) / (k + 1)
		sum += term
	}
	return k - 1
}

# summarize N: sets median, low, high of values[1 .. N]
function summarize(n,	k) {
	sort(n)
	median = n % 2 ? values[(n + 1) / 2] : (values[n / 2] + values[n / 2 + 1]) / 2
	k = cut(n)
	low = values[k + 1]
	high = values[n - k]
}

BEGIN { FS = "\t" }

NR > 1 {
	if (!($3 in seen)) {
		seen[$3] = 1
		scenarios[++count] = $3
	}
	result[$2, $3, $1] = $5
	if ($1 > boots)
		boots = $1
}

END {
	print "scenario\tunpatched\tlow\thigh\tpatched\tlow\thigh\tdifference\tlow\thigh" >tsv
	printf "%-13s %10s %21s %10s %21s %10s %15s\n", "scenario", "unpatched", "95 %", "patched", "95 %", "difference", "95 %"
	for (i = 1; i <= count; i++) {
		line = scenarios[i]
		printf "%-13s", scenarios[i]
		for (kernel = 1; kernel <= 3; kernel++) {
			for (boot = 1; boot <= boots; boot++) {
				u = result["unpatched", scenarios[i], boot]
				p = result["patched", scenarios[i], boot]
				values[boot] = kernel == 1 ? u : kernel == 2 ? p : p - u
			}
			summarize(boots)
			line = line sprintf("\t%.2f\t%.2f\t%.2f", median, low, high)
			printf " %10.2f %*s", median, kernel == 3 ? 15 : 21, sprintf("%.2f .. %.2f", low, high)
			if (kernel == 3)
				worst = i == 1 || high > worst ? high : worst
		}
		print line >tsv
		print ""
	}
	printf "\nThe patches add at most %.1f instructions a packet, by the highest upper end. The goal is 10.\n", worst
}
