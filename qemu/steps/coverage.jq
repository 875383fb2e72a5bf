# SPDX-License-Identifier: Apache-2.0
# What "gcov --json-format" says of one object, to lines "FILE TAB line TAB count". A file's
# name begins where the kernel's tree does.
.files[]
| (.file | capture("(^|/)(?<name>net/traits/(sock|stream)\\.c|include/net/traits\\.h)$").name) as $name
| .lines[]
| [$name, .line_number, .count] | @tsv
