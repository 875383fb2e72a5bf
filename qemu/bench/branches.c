// SPDX-License-Identifier: Apache-2.0
/*
 * branches VMLINUX KEY: the functions of an x86-64 kernel that have branches which
 * depend on the static key KEY: "function TAB number". Such a branch is a nop of 2 or
 * 5 bytes while the key is off; in a disassembly it looks like any other nop, so the
 * kernel's own table of them is read.
 */
#include <elf.h>
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* Two offsets and the key's, each relative to where it stands itself; the key's
 * lowest two bits are flags
 */
struct entry {
	int32_t code;
	int32_t target;
	int64_t key;
};

struct function {
	uint64_t begin;
	uint64_t end;
	const char *name;
	unsigned int branches;
};

static const unsigned char *image;
static const Elf64_Shdr *sections;
static unsigned int section_count;

static const Elf64_Shdr *section_of_type(uint32_t type)
{
	unsigned int i;

	for (i = 0; i < section_count; i++)
		if (sections[i].sh_type == type)
			return &sections[i];
	error(1, 0, "no symbol table: is this a vmlinux?");
	return NULL;
}

/* Where the bytes of an address are in the file */
static const void *at(uint64_t address)
{
	unsigned int i;

	for (i = 0; i < section_count; i++)
		if (sections[i].sh_type == SHT_PROGBITS && sections[i].sh_flags & SHF_ALLOC &&
		    address - sections[i].sh_addr < sections[i].sh_size)
			return image + sections[i].sh_offset + (address - sections[i].sh_addr);
	error(1, 0, "address %#jx is in no section", (uintmax_t)address);
	return NULL;
}

static int by_address(const void *left, const void *right)
{
	const struct function *a = left, *b = right;

	return (a->begin > b->begin) - (a->begin < b->begin);
}

/* Functions do not overlap, but for names for the same code */
static struct function *containing(struct function *functions, size_t count, uint64_t address)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (functions[middle].begin <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low && address < functions[low - 1].end ? &functions[low - 1] : NULL;
}

int main(int argc, char **argv)
{
	uint64_t key = 0, first = 0, last = 0, address;
	const Elf64_Shdr *table, *strings;
	struct function *functions;
	size_t count = 0, i, total;
	const Elf64_Sym *symbols;
	const Elf64_Ehdr *header;
	struct stat status;
	int fd;

	if (argc != 3)
		error(64, 0, "usage: branches VMLINUX KEY");
	fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status))
		error(1, errno, "%s", argv[1]);
	image = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (image == MAP_FAILED)
		error(1, errno, "%s", argv[1]);
	header = (const void *)image;
	if (status.st_size < (off_t)sizeof(*header) || memcmp(header->e_ident, ELFMAG, SELFMAG) ||
	    header->e_machine != EM_X86_64)
		error(1, 0, "%s is no ELF file for x86-64", argv[1]);
	sections = (const void *)(image + header->e_shoff);
	section_count = header->e_shnum;

	table = section_of_type(SHT_SYMTAB);
	strings = &sections[table->sh_link];
	symbols = (const void *)(image + table->sh_offset);
	total = table->sh_size / sizeof(*symbols);
	functions = calloc(total, sizeof(*functions));
	if (!functions)
		error(1, errno, "memory for %zu symbols", total);

	for (i = 0; i < total; i++) {
		const char *name = (const char *)image + strings->sh_offset + symbols[i].st_name;

		if (!strcmp(name, argv[2]))
			key = symbols[i].st_value;
		else if (!strcmp(name, "__start___jump_table"))
			first = symbols[i].st_value;
		else if (!strcmp(name, "__stop___jump_table"))
			last = symbols[i].st_value;
		if (ELF64_ST_TYPE(symbols[i].st_info) != STT_FUNC || !symbols[i].st_size)
			continue;
		functions[count].begin = symbols[i].st_value;
		functions[count].end = symbols[i].st_value + symbols[i].st_size;
		functions[count++].name = name;
	}
	if (!first || !last)
		error(1, 0, "%s has no table of static branches", argv[1]);
	if (!key)
		error(1, 0, "%s has no static key '%s'", argv[1], argv[2]);
	qsort(functions, count, sizeof(*functions), by_address);

	for (address = first; address < last; address += sizeof(struct entry)) {
		const struct entry *entry = at(address);
		struct function *function;

		if (address + offsetof(struct entry, key) + (entry->key & ~3LL) != key)
			continue;
		function = containing(functions, count, address + entry->code);
		if (!function)
			error(1, 0, "a branch at %#jx is in no function", (uintmax_t)(address + entry->code));
		function->branches++;
	}
	for (i = 0; i < count; i++)
		if (functions[i].branches)
			printf("%s\t%u\n", functions[i].name, functions[i].branches);
	return 0;
}
