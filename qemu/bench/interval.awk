# SPDX-License-Identifier: Apache-2.0
# With median.awk: boots.tsv ("boot, kernel, scenario, packets, instructions a packet, their
# mean") to medians over boots, each with its 95 % interval. What the patches add is the
# median of the differences of boots that ran in turn.

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
