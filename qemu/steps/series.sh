# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The patch series: onto the cached tree, back into the repository, checked.
#
# The branch 'packet-traits/VERSION' of the worktree VERSION/tree/patched is the applied
# series, and a place to work on it. What somebody committed or edited there is never
# thrown away without being asked to.

# checkpatch's messages that do not count: a sign-off is the submitter's to give, and
# a tree that was made from a tarball does not have the commits that "Fixes:" names
CHECKPATCH_IGNORE=MISSING_SIGN_OFF,UNKNOWN_COMMIT_ID

# series_patches: the paths of the patches for the kernel in use, in order, one per line.
# Before a kernel is chosen: of those for the newest one.
series_patches() {
	"$ROOT/kernel-patches/list" "${VERSION:-$(tested_versions | tail -n 1)}"
}

# series_branch: the branch with the series. A branch can be checked out in one worktree only,
# so each version has its own.
series_branch() {
	echo "packet-traits/$VERSION"
}

need_series() {
	[ -n "$(series_patches)" ] ||
		fail "no patch in ${SERIES_DIRECTORY#"$ROOT"/}: there is no series to ${1:-apply}"
}

# series_id: names what is to be applied onto what
series_id() {
	local patch
	{
		echo "$SOURCE_TAG"
		series_patches | while read -r patch; do cat "$patch"; done
	} | sha256sum | cut -c 1-16
}

# explain_misfit PATCH WORKTREE: which hunks of which functions did not apply
explain_misfit() {
	local patch=$1 worktree=$2 rejects=$LOGS/rejects log=$LOGS/apply.log file hunks
	rm -rf "$rejects"
	mkdir -p "$rejects"
	clean_git -C "$worktree" apply --reject "$patch" >"$log" 2>&1 || true
	while read -r file; do
		mkdir -p "$(dirname "$rejects/$file")"
		mv "$worktree/$file" "$rejects/$file"
	done < <(cd "$worktree" && find . -name '*.rej' | sed 's,^\./,,' | LC_ALL=C sort)
	# The variables are awk's
	# shellcheck disable=SC2016
	hunks=$(cd "$rejects" && find . -name '*.rej' | sed 's,^\./,,' | LC_ALL=C sort | xargs -r awk '
		# What follows the second @@ names the function
		/^@@ / {
			line = $2; sub(/^-/, "", line); sub(/,.*/, "", line)
			place = $0; sub(/^@@ [^@]*@@ ?/, "", place)
			name = place
			if (match(name, /[A-Za-z_0-9]+\(/))
				place = substr(name, RSTART, RLENGTH) ")"
			file = FILENAME; sub(/\.rej$/, "", file)
			printf "%s:%s%s\n", file, line, place != "" ? " in " place : ""
		}')
	fail "$(basename "$patch") does not apply to Linux $VERSION ($SOURCE_TAG)$([ -z "$hunks" ] || printf ': %d of its %d hunks %s rejected' \
		"$(wc -l <<<"$hunks")" "$(grep -c '^@@ ' "$patch")" "$([ "$(wc -l <<<"$hunks")" -eq 1 ] && echo is || echo are)")" \
		"$hunks" \
		"$(sed -nE 's/^error: (.*: (No such file.*|already exists.*|does not exist.*|does not match.*))$/\1/p' "$log" | sort -u | head -n 6)" \
		"${hunks:+The rejected hunks: $rejects}" \
		"'qemu/vm patch apply --3way' merges the series and stops where a person has to decide. See docs/porting.md."
}

# apply_in_passing ID: 'git am' of the series in a worktree that holds only the
# files which the series touches; ends as the branch series/ID. A full worktree
# would be slower, and the files of the tree that is built would be written, and
# compiled, again although nothing in them changed.
apply_in_passing() {
	local id=$1 worktree=$TREES/applying patch
	rm -rf "$worktree"
	linux_git worktree prune
	logged "$LOGS/apply.log" linux_git worktree add --no-checkout --detach "$worktree" "$SOURCE_TAG"
	tree_git applying config core.sparseCheckoutCone false
	{
		series_patches | while read -r patch; do
			git apply --numstat -z "$patch" 2>/dev/null | tr '\0' '\n' | cut -f 3
			sed -nE 's,^(---|\+\+\+) [ab]/(.*)$,\2,p' "$patch"
		done
		echo Makefile
	} | sed '/^$/d; s,^,/,' | LC_ALL=C sort -u >"$TREES/touched"
	tree_git applying sparse-checkout set --no-cone --stdin <"$TREES/touched" >"$LOGS/apply.log" 2>&1
	tree_git applying checkout -q --detach "$SOURCE_TAG"

	while read -r patch; do
		# A fixed committer and the author's date: the same series gives the
		# same commits, whoever applies it
		if ! GIT_COMMITTER_NAME='Packet traits' GIT_COMMITTER_EMAIL=packet-traits@localhost \
			tree_git applying am -q --keep-cr --committer-date-is-author-date "$patch" \
			>"$LOGS/apply.log" 2>&1; then
			explain_full_disk "$LOGS/apply.log"
			tree_git applying am --abort >/dev/null 2>&1 || true
			explain_misfit "$patch" "$worktree"
		fi
	done < <(series_patches)

	linux_git update-ref "refs/heads/series/$id" "$(tree_git applying rev-parse HEAD)"
	linux_git worktree remove --force "$worktree"
}

# switch_tree FLAVOUR COMMIT [BRANCH]: make the worktree that commit. Only files
# that differ are written, so that make compiles no more than it must.
switch_tree() {
	local flavour=$1 commit=$2 branch=${3:-} tree=$TREES/$1 log=$LOGS/switch-$1.log
	local -a to=(--detach "$commit")
	lock_shared "$tree.lock"
	! is_switched "$@" || return 0
	lock_exclusive "$tree.lock"
	[ -z "$branch" ] || to=(-B "$branch" "$commit")
	if [ -e "$TREES/$flavour.switching" ]; then
		# An interrupted run left some files old, some new, and git's lock
		detail "tree/$flavour: an earlier run was interrupted, setting it right"
		rm -f "$(tree_git "$flavour" rev-parse --absolute-git-dir 2>/dev/null)"/index.lock
		tree_git "$flavour" reset -q --hard >"$log" 2>&1 || rm -rf "$tree"
	fi
	touch "$TREES/$flavour.switching"
	if ! tree_git "$flavour" rev-parse -q --verify HEAD >/dev/null 2>&1; then
		with_cache_lock add_worktree "$tree" "$commit" "$log"
	fi
	logged "$log" tree_git "$flavour" checkout -q "${to[@]}"
	rm -f "$TREES/$flavour.switching"
	lock_shared "$tree.lock"
	is_switched "$@" || fail "$tree was changed by another run meanwhile: $(holder "$tree.lock")"
}

# is_switched FLAVOUR COMMIT [BRANCH]: the worktree is at that commit, and on that branch
is_switched() {
	[ ! -e "$TREES/$1.switching" ] &&
		[ "$(tree_git "$1" rev-parse -q --verify HEAD 2>/dev/null)" = "$(linux_git rev-parse "$2^{commit}")" ] &&
		[ "$(tree_git "$1" branch --show-current)" = "${3:-}" ]
}

# add_worktree TREE COMMIT LOG
add_worktree() {
	rm -rf "$1"
	linux_git worktree prune
	need_space "$CACHE" 2000 "a kernel tree"
	logged "$3" linux_git -c checkout.workers=0 worktree add --force --detach "$1" "$2"
}

# refuse_half_done TREE: end if 'git am' or 'git rebase' waits for a person there. The patches that are
# still to come would be missing from what is exported.
refuse_half_done() {
	local git_directory
	git_directory=$(git -C "$1" rev-parse --absolute-git-dir)
	[ ! -e "$git_directory/rebase-apply" ] && [ ! -e "$git_directory/rebase-merge" ] ||
		fail "a 'git am' or 'git rebase' is not finished in $1" \
			"Finish it there with 'git am --continue' or 'git rebase --continue', or drop it with --abort."
}

# refuse_to_lose FLAVOUR: end if somebody's work is in the tree
refuse_to_lose() {
	local tree=$TREES/$1 applied head changed
	[ -e "$tree/.git" ] && [ ! -e "$tree.switching" ] || return 0
	refuse_half_done "$tree"
	changed=$(tree_git "$1" status --porcelain --untracked-files=no | head -n 5) || true
	[ -z "$changed" ] ||
		fail "$tree has changes that are not committed: $(paste -sd ' ' <<<"$changed")" \
			"Commit them and run 'qemu/vm patch export', or drop them with 'qemu/vm patch apply --force'."
	applied=$(cat "$tree.applied" 2>/dev/null) || applied=''
	head=$(tree_git "$1" rev-parse HEAD)
	[ -z "$applied" ] || [ "$head" = "$applied" ] ||
		fail "$tree has commits that are not in the series: $(tree_git "$1" log --oneline -n 1)" \
			"Run 'qemu/vm patch export' to put them into ${SERIES_DIRECTORY#"$ROOT"/}," \
			"or drop them with 'qemu/vm patch apply --force'."
}

# ensure_patched [--force]: tree/patched is the source with the series
ensure_patched() {
	local id commit tree=$TREES/patched count
	need_series
	id=$(series_id)
	count=$(series_patches | wc -l)
	lock_shared "$tree.lock"
	if ! commit=$(linux_git rev-parse -q --verify "refs/heads/series/$id"); then
		step "series: applying $count patches to $SOURCE_TAG"
		with_cache_lock apply_in_passing "$id"
		commit=$(linux_git rev-parse "refs/heads/series/$id")
	fi
	if [ "${1:-}" = --force ]; then
		lock_exclusive "$tree.lock"
		[ ! -e "$tree/.git" ] || tree_git patched reset -q --hard
	else
		# Exported work is in the series: same content, other commits
		if [ -e "$tree/.git" ] && [ ! -e "$tree.switching" ] &&
			[ "$(tree_git patched rev-parse 'HEAD^{tree}')" = "$(linux_git rev-parse "$commit^{tree}")" ]; then
			tree_git patched rev-parse HEAD >"$tree.applied"
		fi
		refuse_to_lose patched
	fi
	if [ ! -e "$tree/.git" ] || [ -e "$tree.switching" ] ||
		[ "$(tree_git patched rev-parse HEAD 2>/dev/null)" != "$commit" ] ||
		[ -n "$(tree_git patched status --porcelain --untracked-files=no)" ]; then
		switch_tree patched "$commit" "$(series_branch)"
	fi
	echo "$commit" >"$tree.applied"
	step "series: $count patches on $SOURCE_TAG, branch $(series_branch) of $tree"
}

# apply_3way: the series in tree/patched by three-way merges, for a kernel that it does not fit.
# Where 'git am' stops, a person goes on.
apply_3way() {
	local tree=$TREES/patched log=$LOGS/apply.log last
	local -a patches
	refuse_to_lose patched
	mapfile -t patches < <(series_patches)
	switch_tree patched "$SOURCE_TAG" "$(series_branch)"
	lock_exclusive "$tree.lock"
	# What follows is work that nothing but an export puts into the series
	linux_git rev-parse "$SOURCE_TAG^{commit}" >"$tree.applied"
	step "series: merging ${#patches[@]} patches into $SOURCE_TAG, branch $(series_branch) of $tree"
	if ! GIT_COMMITTER_NAME='Packet traits' GIT_COMMITTER_EMAIL=packet-traits@localhost \
		tree_git patched am --3way --keep-cr --committer-date-is-author-date "${patches[@]}" >"$log" 2>&1; then
		explain_full_disk "$log"
		if grep -qE 'lacking or useless|lacks (the )?necessary blob' "$log"; then
			last=$(tree_git patched log -1 --format="'%s' is the last patch that applies")
			[ "$(tree_git patched rev-parse HEAD)" != "$(linux_git rev-parse "$SOURCE_TAG^{commit}")" ] || last="the first patch does not apply"
			tree_git patched am --abort >/dev/null 2>&1 || true
			fail "$last to $SOURCE_TAG, and the cache has no kernel to merge from" \
				"Apply the series to a kernel that it fits first: qemu/vm patch apply --kernel $(cat "$SERIES_DIRECTORY/base" 2>/dev/null || tested_versions | tail -n 1)"
		fi
		fail "'git am' stopped in $tree: $(sed -n 's/^Patch failed at //p' "$log")" \
			"$(tree_git patched status --porcelain | sed -nE 's/^(UU|AA|DU|UD|AU|UA) /conflict in /p')" \
			"Resolve it there, then 'git add' the files and 'git am --continue', until no patch is left." \
			"'git am --abort' there drops the merge." \
			"'qemu/vm patch export' then writes the patches that are different. See docs/porting.md." \
			"All that git said: $log"
	fi
	step "series: merged; look at it with 'git log' in $tree, then run 'qemu/vm patch export'"
}

# export_patches TREE BASE BRANCH DIRECTORY LETTER [--signoff]: writes the patches and, if LETTER
# is 1, the cover letter; nothing in them depends on when, where or by whom that is done
export_patches() {
	local tree=$1 base=$2 branch=$3 directory=$4 letter=$5 signoff=${6:-} text count author shortlog
	# Only the signer's name is taken from the user's configuration
	local signer
	signer=$(git -C "$tree" var GIT_COMMITTER_IDENT 2>/dev/null) || signer='nobody <nobody@localhost> 0 +0000'
	local -a plain_git=(env GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
		"GIT_COMMITTER_NAME=${signer%% <*}" "GIT_COMMITTER_EMAIL=$(sed 's/.*<\(.*\)>.*/\1/' <<<"$signer")"
		git -C "$tree"
		-c core.abbrev=12 -c core.quotePath=true -c diff.noprefix=false -c diff.mnemonicPrefix=false
		-c diff.algorithm=myers -c diff.renames=true -c diff.context=3 -c diff.interHunkContext=0
		-c diff.suppressBlankEmpty=false -c diff.relative=false
		-c format.subjectPrefix=PATCH -c format.signature= -c format.headers= -c format.pretty=email
		-c format.encodeEmailHeaders=true -c i18n.logOutputEncoding=UTF-8
		-c log.mailmap=false -c notes.displayRef= -c log.showSignature=false)

	"${plain_git[@]}" format-patch -q --output-directory "$directory" --no-numbered --zero-commit --no-signature \
		--no-base --no-thread --no-attach --no-cover-letter --no-notes --suffix=.patch --no-to --no-cc \
		--no-add-header --no-from ${signoff:+"$signoff"} "$base..$branch"

	[ "$letter" = 1 ] || return 0
	# The letter's text is written by hand, what stands below it is counted
	text=$SERIES_DIRECTORY/cover-letter.txt
	[ -s "$text" ] || fail "no ${text#"$ROOT"/}: it holds the cover letter's text" \
		"Its first line is the subject, then an empty line, then what the series does."
	count=$(find "$directory" -name '*.patch' | wc -l)
	author=$(git -C "$tree" log -1 --format='%an <%ae>' "$branch")
	shortlog=$("${plain_git[@]}" log --reverse --no-merges --format='%an%x09%s' "$base..$branch" |
		awk -F '\t' '{ n[$1]++; if (n[$1] == 1) order[++names] = $1; lines[$1] = lines[$1] "  " $2 "\n" }
			END { for (i = 1; i <= names; i++) printf "%s (%d):\n%s\n", order[i], n[order[i]], lines[order[i]] }')
	{
		# Not named *.patch: 'git am' would stop at a mail without a patch
		printf 'From: %s\n' "$author"
		printf 'Subject: [PATCH %0*d/%d] %s\n' ${#count} 0 "$count" "$(head -n 1 "$text")"
		tail -n +2 "$text"
		printf '\n%s\n\n' "$shortlog"
		"${plain_git[@]}" diff --stat=72 --summary "$base..$branch"
	} >"$directory/0000-cover-letter.txt"
}

# replace_series DIRECTORY: the exported files over the repository's, touching
# only what differs
replace_series() {
	local from=$1 file name changed=0 removed=0 count
	mkdir -p "$SERIES_DIRECTORY"
	for file in "$from"/*; do
		name=$(basename "$file")
		cmp -s "$file" "$SERIES_DIRECTORY/$name" && continue
		cp "$file" "$SERIES_DIRECTORY/$name"
		detail "written: $name"
		changed=$((changed + 1))
	done
	while read -r file; do
		[ ! -e "$from/$(basename "$file")" ] || continue
		rm "$file"
		detail "removed: $(basename "$file")"
		removed=$((removed + 1))
	done < <(find "$SERIES_DIRECTORY" -maxdepth 1 -name '*.patch')
	count=$(find "$SERIES_DIRECTORY" -maxdepth 1 -name '*.patch' | wc -l)
	step "series: $count patches in ${SERIES_DIRECTORY#"$ROOT"/}, $changed files written, $removed removed"
}

# check_authors TREE BASE BRANCH: all patches have the author that kernel-patches/author names
check_authors() {
	local wanted others
	wanted=$(cat "$ROOT/kernel-patches/author" 2>/dev/null) ||
		fail "no kernel-patches/author: its one line is the author of all patches, as in 'Name <mail@example.org>'"
	others=$(git -C "$1" log --reverse --format='%an <%ae>%x09%s' "$2..$3" |
		awk -F '\t' -v wanted="$wanted" '$1 != wanted { print $1 ": " $2 }')
	[ -z "$others" ] || fail "$(wc -l <<<"$others") of the patches have another author than $wanted:" "$others" \
		"git rebase $2 --exec 'git commit --amend --no-edit --author \"$wanted\"' in that tree gives them this one." \
		"Your own name belongs into a Signed-off-by: see --signoff."
}

# message_of PATCH: the mail without what differs from one export to another
message_of() {
	sed -E '/^---$/Q; /^(From [0-9a-f]{40} |Date: )/d' "$1"
}

# serves PATCH EXPORTED TREE COMMIT: PATCH says the same as EXPORTED, and applied to the index
# makes COMMIT of it. The index is COMMIT's afterwards.
serves() {
	local patch=$1 exported=$2 tree=$3 commit=$4
	[ -n "$patch" ] && [ "$(message_of "$patch")" = "$(message_of "$exported")" ] &&
		clean_git -C "$tree" apply --cached "$patch" 2>/dev/null &&
		[ "$(git -C "$tree" write-tree)" = "$(git -C "$tree" rev-parse "$commit^{tree}")" ] && return 0
	git -C "$tree" read-tree "$commit"
	return 1
}

# replace_variants VERSION TREE BASE BRANCH DIRECTORY: of the patches in DIRECTORY, exported for an
# older kernel, the repository keeps those for which no patch for a newer kernel serves
replace_variants() {
	local version=$1 tree=$2 base=$3 branch=$4 directory=$5 folder file name own last=0000 letter=a written=0
	local candidate commit missing=''
	local -a commits candidates names=() kept=()
	folder=$SERIES_DIRECTORY.${version##*.}
	mapfile -t commits < <(git -C "$tree" rev-list --reverse "$base..$branch")
	# What would be taken without this folder: that is for the kernel after this one
	mapfile -t candidates < <("$ROOT/kernel-patches/list" "${version%.*}.$((${version##*.} + 1))")

	for candidate in "${candidates[@]}"; do
		name=$(basename "$candidate")
		[ -n "$(find "$directory" -name "????-${name#*-}" -print -quit)" ] || missing+="${missing:+, }$name"
	done
	[ -z "$missing" ] || fail "'$branch' in $tree lacks a patch that Linux $version would get: $missing" \
		"A folder for an older kernel can replace patches and add some. It cannot leave any out."

	export GIT_INDEX_FILE=$CACHE/download/export.index
	git -C "$tree" read-tree "$base"
	for file in "$directory"/*.patch; do
		commit=${commits[${#names[@]}]}
		own=$(basename "$file")
		candidate=''
		for name in "${candidates[@]}"; do
			[ "$(basename "$name" | cut -d - -f 2-)" != "${own#*-}" ] || candidate=$name
		done
		if [ -n "$candidate" ]; then
			name=$(basename "$candidate")
			last=${name%%-*}
			letter=a
		else
			# It sorts behind the patch before it
			name=$last$letter-${own#*-}
			letter=$(tr a-y b-z <<<"$letter")
		fi
		names+=("$name")
		! serves "$candidate" "$file" "$tree" "$commit" || continue
		kept+=("$name")
		cmp -s "$file" "$folder/$name" && continue
		mkdir -p "$folder"
		cp "$file" "$folder/$name"
		detail "written: $(basename "$folder")/$name"
		written=$((written + 1))
	done
	rm -f "$GIT_INDEX_FILE"
	unset GIT_INDEX_FILE
	for file in "$folder"/*.patch; do
		[ -e "$file" ] || continue
		[[ " ${kept[*]} " != *" $(basename "$file") "* ]] || continue
		rm "$file"
		detail "removed: $(basename "$folder")/$(basename "$file")"
	done
	rmdir "$folder" 2>/dev/null || true
	step "series: ${#kept[@]} of ${#names[@]} patches are different for Linux $version, $written files written"
}

patch_apply() {
	local force='' merge=''
	case "$#:${1:-}" in
	0:) ;;
	1:--force) force=--force ;;
	1:--3way) merge=1 ;;
	*) usage_error "patch apply: what is '$*'?" patch ;;
	esac
	open_cache
	need_series
	check_machine source
	install_packages
	ensure_source
	if [ -n "$merge" ]; then
		apply_3way
	else
		ensure_patched $force
	fi
}

patch_export() {
	local tree='' base='' branch='' signoff='' exported version newest letter=1
	while [ $# -gt 0 ]; do
		case $1 in
		--signoff) signoff=--signoff ; shift ;;
		--from | --base | --branch)
			[ -n "${2:-}" ] || usage_error "$1 needs a value" patch
			case $1 in
			--from) tree=$(realpath -m "$2") ;;
			--base) base=$2 ;;
			--branch) branch=$2 ;;
			esac
			shift 2 ;;
		*) usage_error "patch export: what is '$1'?" patch ;;
		esac
	done
	open_cache
	[ -z "$tree" ] || [ -z "$KERNEL" ] || usage_error "patch export: --from TREE says which kernel it is, --kernel $KERNEL does not go with it" patch
	if [ -z "$tree" ]; then
		use_cached_source || fail "no tree to export from: the cache $CACHE has no source${KERNEL:+ of Linux $KERNEL}" \
			"'qemu/vm patch apply' gets it; --from TREE --base REF takes another tree."
		tree=$TREES/patched
		[ -e "$tree/.git" ] || fail "no tree to export from: $tree does not exist" \
			"'qemu/vm patch apply' makes it; --from TREE --base REF takes another one."
		lock_shared "$tree.lock"
		[ -n "$base" ] || base=$SOURCE_TAG
		[ -n "$branch" ] || branch=$(series_branch)
	fi
	[ -n "$base" ] || fail "--from $tree needs --base REF" "REF is the commit that the first patch applies to."
	[ -n "$branch" ] || branch=HEAD
	local ref
	for ref in "$base" "$branch"; do
		git -C "$tree" rev-parse -q --verify "$ref^{commit}" >/dev/null 2>&1 ||
			fail "$tree has no commit '$ref'"
	done
	git -C "$tree" merge-base --is-ancestor "$base" "$branch" ||
		fail "'$base' is not an ancestor of '$branch' in $tree"
	[ "$(git -C "$tree" rev-list --count "$base..$branch")" -gt 0 ] ||
		fail "nothing to export: there is no commit between '$base' and '$branch' in $tree"
	[ -z "$(git -C "$tree" rev-list --min-parents=2 "$base..$branch")" ] ||
		fail "there are merges between '$base' and '$branch' in $tree: a series is a straight line of commits"
	refuse_half_done "$tree"
	check_authors "$tree" "$base" "$branch"
	version=$(git -C "$tree" show "$base:Makefile" 2>/dev/null | makefile_version)
	check_version "$version" "'$base' in $tree"
	# The series' own folder is for the newest kernel that it was exported from
	newest=$(cat "$SERIES_DIRECTORY/base" 2>/dev/null) || newest=$version
	is_at_least "$version" "$newest" || letter=0
	wait_lock -x "$CACHE/lock"
	exported=$CACHE/download/exported
	rm -rf "$exported"
	mkdir -p "$exported"
	export_patches "$tree" "$base" "$branch" "$exported" $letter $signoff
	if [ $letter = 1 ]; then
		echo "$version" >"$exported/base"
		replace_series "$exported"
	else
		replace_variants "$version" "$tree" "$base" "$branch" "$exported"
	fi
	rm -rf "$exported"
}

# checkpatch PATCH: 0 if checkpatch has nothing to say
checkpatch() {
	(cd "$TREES/check" &&
		perl scripts/checkpatch.pl --strict --show-types --ignore "$CHECKPATCH_IGNORE" --no-summary --quiet "$1")
}

# touched_objects COMMIT: the object files that the kernel's build makes of the C
# and assembler files that the commit leaves behind
touched_objects() {
	tree_git check diff-tree --no-commit-id --name-only -r --diff-filter=d "$1" |
		sed -nE '/^(tools|samples|scripts|Documentation|usr)\//d; s/\.[cS]$/.o/p'
}

patch_check() {
	[ $# -eq 0 ] || usage_error "patch check takes no argument" patch
	open_cache
	need_series check
	PACKAGES+=(python3-git)
	check_machine source
	install_packages
	ensure_source
	lock_exclusive "$BUILDS/check.lock"
	local id number=0 count patch commit bad=0 log
	local -a patches commits objects
	id=$(series_id)
	if ! linux_git rev-parse -q --verify "refs/heads/series/$id" >/dev/null; then
		step "series: applying to $SOURCE_TAG"
		with_cache_lock apply_in_passing "$id"
	fi
	mapfile -t patches < <(series_patches)
	mapfile -t commits < <(linux_git rev-list --reverse "$SOURCE_TAG..series/$id")
	count=${#patches[@]}
	[ ${#commits[@]} -eq "$count" ] || fail "$count patches gave ${#commits[@]} commits"

	for commit in "${commits[@]}"; do
		patch=${patches[number]}
		number=$((number + 1))
		step "check $number of $count: $(basename "$patch")"
		switch_tree check "$commit"
		log=$LOGS/check-$number.log
		if ! checkpatch "$patch" >"$log" 2>&1; then
			quoted <"$log"
			detail "checkpatch is not content"
			bad=$((bad + 1))
		fi
		configure_kernel check
		mapfile -t objects < <(touched_objects "$commit")
		if [ ${#objects[@]} -eq 0 ]; then
			detail "no file that the kernel's build compiles"
			continue
		fi
		if ! kernel_make check "${objects[@]}" >"$log" 2>&1 </dev/null; then
			explain_full_disk "$log"
			grep -E 'error|warning|\*\*\*' "$log" | head -n 15 | quoted || true
			detail "does not build: ${objects[*]} (log: $log)"
			bad=$((bad + 1))
		elif grep -q 'warning:' "$log"; then
			grep 'warning:' "$log" | quoted
			detail "builds with warnings: ${objects[*]} (log: $log)"
			bad=$((bad + 1))
		else
			detail "built: ${objects[*]}"
		fi
	done
	[ "$bad" -eq 0 ] || fail "$bad of the checks of $count patches failed, see above"
	step "series: $count patches are clean, and each builds what it touches"
}

# check_skbuff_hole VMLINUX: the two bytes of struct sk_buff take a hole in this configuration, and
# move no other field. The kernel cannot assert it for every configuration: with few features
# there is no hole behind alloc_cpu.
check_skbuff_hole() {
	local places
	# "alloc_cpu 136 traits 138 csum 140": pahole prints the structure once for each layout
	places=$(pahole -C sk_buff "$1" 2>/dev/null | sed -nE 's,^.* (alloc_cpu|traits|csum); +/\* +([0-9]+) .*,\1 \2,p' |
		awk 'NR <= 3' | paste -sd ' ') || places=''
	awk '{ exit !($1 == "alloc_cpu" && $3 == "traits" && $5 == "csum" && $4 == $2 + 2 && $6 == $4 + 2 && $2 % 4 == 0) }' <<<"$places" ||
		fail "in struct sk_buff of $1 the two bytes of packet traits do not fit behind alloc_cpu: ${places:-pahole finds no such structure}" \
			"A field of two bytes before it has come or gone: see docs/porting.md, 'Two free bytes'."
}

# skbuff_layout FLAVOUR: what pahole says of struct sk_buff, as distributions
# configure it
skbuff_layout() {
	local flavour=$1 tree=$TREES/$1 build=$BUILDS/sizes-$1 log=$LOGS/sizes-$1.log unmet
	local -a fragments=("$CONFIG_DIRECTORY"/{machine,network,bpf,distribution}.config)
	[ "$flavour" = unpatched ] || fragments+=("$CONFIG_DIRECTORY/traits.config")
	mkdir -p "$build"
	lock_exclusive "$build.lock"
	logged "$log" make -C "$tree" O="$build" ARCH=x86_64 tinyconfig
	ARCH=x86_64 logged "$log" "$tree/scripts/kconfig/merge_config.sh" -m -O "$build" "$build/.config" "${fragments[@]}"
	logged "$log" make -C "$tree" O="$build" ARCH=x86_64 olddefconfig
	unmet=$(unmet_symbols "$build/.config" "$CONFIG_DIRECTORY/distribution.config")
	[ -z "$unmet" ] || fail "the configuration for comparing sizes is not what qemu/config asks for:" "$unmet"
	logged "$log" make -C "$tree" O="$build" ARCH=x86_64 -j "$(nproc)" net/core/skbuff.o
	pahole -C sk_buff "$build/net/core/skbuff.o"
}

# patch_sizes: struct sk_buff must not grow, in no configuration
patch_sizes() {
	local flavour
	local -A size
	[ $# -eq 0 ] || usage_error "patch sizes: what is '$1'?" patch
	open_cache
	need_series
	check_machine source
	install_packages
	ensure_source
	switch_tree unpatched "$SOURCE_TAG"
	ensure_patched
	for flavour in unpatched patched; do
		step "series: struct sk_buff of the $flavour kernel, configured like a distribution's"
		size[$flavour]=$(skbuff_layout $flavour | sed -n 's|.*/\* size: \([0-9]*\),.*|\1|p' | tail -n 1)
		detail "${size[$flavour]} bytes"
	done
	if [ "${size[patched]}" != "${size[unpatched]}" ]; then
		fail "struct sk_buff has ${size[patched]} bytes with the series, ${size[unpatched]} without"
	fi
	step "series: struct sk_buff has ${size[patched]} bytes, with the series and without"
}

help_patch() {
	cat <<-E
	Usage: qemu/vm patch apply [--force | --3way]
	       qemu/vm patch export [--signoff] [--from TREE --base REF [--branch REF]]
	       qemu/vm patch check
	       qemu/vm patch sizes

	apply   applies the patches that kernel-patches/list prints for the kernel in use with 'git am'. The
	        result is the branch packet-traits/VERSION in the cache's VERSION/tree/patched. Keeps changes
	        that somebody made there, unless --force is given. If a patch does not apply, prints
	        the functions and hunks that are rejected. --3way merges the series instead, and leaves
	        'git am' to you in that tree where it stops: for a new point release.
	export  writes the patches of that branch or, with --from, of BASE..BRANCH (default: HEAD) of
	        another tree. For the newest kernel so far (${SERIES_DIRECTORY#"$ROOT"/}/base), or a newer
	        one, writes that folder and its 0000-cover-letter.txt. For an older kernel 6.12.N,
	        writes to linux-6.12.N what has to be different up to there. Refuses any author but that of
	        kernel-patches/author. --signoff adds the Signed-off-by of the person who runs it.
	check   runs scripts/checkpatch.pl --strict on each patch (without the missing sign-off), and
	        builds the files that each patch touches on the tree of that patch.
	sizes   compares struct sk_buff with and without the series, configured as distributions do.

	The cache: $CACHE
	E
}

command_patch() {
	[ $# -gt 0 ] || usage_error "patch: apply, export, check or sizes?" patch
	local what=$1
	shift
	case $what in
	apply) patch_apply "$@" ;;
	export) patch_export "$@" ;;
	check) patch_check "$@" ;;
	sizes) patch_sizes "$@" ;;
	*) usage_error "patch: what is '$what'?" patch ;;
	esac
}
