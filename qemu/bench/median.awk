# SPDX-License-Identifier: Apache-2.0
# Functions: medians with their 95 % intervals, which follow from the order of the values alone: as
# many of them are cut off at both ends as a fair coin allows.

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
