# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The Swift toolchain: also the source of the clang that compiles for BPF.

# needed_swift: the version that Package.swift's first line asks for
needed_swift() {
	sed -nE '1s,^// *swift-tools-version: *([0-9]+\.[0-9]+).*,\1,p' "$ROOT/Package.swift" 2>/dev/null
}

find_toolchain() {
	local needed swift version
	needed=$(needed_swift)
	[ -n "$needed" ] ||
		fail "$ROOT/Package.swift does not begin with '// swift-tools-version: N.N'" \
			"The harness reads from it which Swift is needed."
	swift=$(command -v swift) ||
		fail "no Swift toolchain: Swift $needed or newer is needed, and there is no 'swift' on PATH" \
			"PATH is $PATH" \
			"Unpack a toolchain (https://www.swift.org/install/linux/) and put its usr/bin directory on PATH:" \
			"  PATH=/where/it/is/usr/bin:\$PATH"
	version=$(swift --version 2>/dev/null | sed -nE 's/.*Swift version ([0-9]+(\.[0-9]+)+).*/\1/p' | head -n 1) || version=''
	[ -n "$version" ] ||
		fail "$swift does not tell its version: Swift $needed or newer is needed" \
			"'swift --version' said: $(swift --version 2>&1 | head -n 2 | tr '\n' ' ')"
	if ! is_at_least "$version" "$needed"; then
		fail "the Swift toolchain is too old: Swift $needed or newer is needed, $swift is $version" \
			"Put a newer toolchain's usr/bin directory first on PATH."
	fi
	TOOLCHAIN=$(dirname "$(readlink -f "$swift")")
}
