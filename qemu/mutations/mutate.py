#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mutate.py TREE LIST...: puts each site of the lists under a switch, in the kernel tree TREE.

The kernel then leaves out what the parameter traits_mutant says, the number of the
site, from 1 on through all lists: at boot, or as long as it runs what is written to
/sys/module/kernel/parameters/traits_mutant. One build is enough for all of them. Prints
one line for each: number, list, name, file, test, separated by tabs.

The sites are looked for in what the tree's HEAD has, and a file is written only if that
changes it: what was built before is not built again.
"""

import subprocess
import sys
from pathlib import Path

DECLARATION = "extern unsigned int traits_mutant;\n"
DEFINITION = """
#include <linux/export.h>
#include <linux/moduleparam.h>
unsigned int traits_mutant;
EXPORT_SYMBOL(traits_mutant);
core_param(traits_mutant, traits_mutant, uint, 0644);
"""
DEFINED_IN = "net/traits/store.c"


def switched(number, original, replacement):
    """The C text that does `original`, or for this number `replacement`."""
    mutant = f"traits_mutant == {number}"
    if replacement is None:
        # In braces, or an else behind it would be this one's
        return f"{{ if (traits_mutant != {number}) {original} }}"
    if original.endswith(";"):
        return f"if ({mutant}) {{ {replacement} }} else {{ {original} }}"
    if original.startswith("if (") and replacement.startswith("if ("):
        return f"if (({mutant}) ? ({replacement[4:-1]}) : ({original[4:-1]}))"
    return f"(({mutant}) ? ({replacement}) : ({original}))"


def sites(path):
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        # Alternatives in C are written ||: a single bar with blanks separates
        fields = line.split(" | ")
        if len(fields) != 5:
            sys.exit(f"{path}:{number}: {len(fields)} fields instead of 5: {line}")
        name, file, anchor, change, case = fields
        original, _, replacement = change.strip().partition(" => ")
        yield name.strip(), file.strip(), anchor.lstrip(" ").rstrip(), original, replacement or None, case.strip()


def git(tree, *arguments):
    return subprocess.run(["git", "-C", tree, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    tree, paths = Path(sys.argv[1]), sys.argv[2:]
    texts, number = {}, 0
    for path in paths:
        for name, file, anchor, original, replacement, case in sites(path):
            number += 1
            text = texts.get(file) or git(tree, "show", f"HEAD:{file}")
            begin = text.find("\n" + anchor)
            at = text.find(original, begin)
            if begin < 0 or at < 0:
                sys.exit(f"{path}: {name}: {file} has no '{original if begin >= 0 else anchor}'")
            texts[file] = text[:at] + switched(number, original, replacement) + text[at + len(original):]
            print(number, Path(path).stem, name, file, case, sep="\t")
    texts.setdefault(DEFINED_IN, git(tree, "show", f"HEAD:{DEFINED_IN}"))
    for file in git(tree, "diff", "--name-only", "HEAD").split():
        if file not in texts:
            git(tree, "checkout", "-q", "HEAD", "--", file)
    for file, text in texts.items():
        text = DECLARATION + text + (DEFINITION if file == DEFINED_IN else "")
        if (tree / file).read_text() != text:
            (tree / file).write_text(text)


if __name__ == "__main__":
    main()
