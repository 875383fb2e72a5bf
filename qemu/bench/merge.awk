# SPDX-License-Identifier: Apache-2.0
# merge.tsv (variant, datagrams, instructions a datagram, datagrams a send became) to a table
BEGIN { FS = "\t"; print "traits      instructions   against none   datagrams of 40" }
$1 == "without" { none = $3 }
{ printf "%-11s %12.1f %+13.2f %% %17.2f\n", $1, $3, ($3 / none - 1) * 100, $4 }
