#!/usr/bin/env bash
# Makes a book of README.md, CONTRIBUTING.md and docs/ in target/book/html, and fails if a link in it leads nowhere.
#
# Its pages are copies that lie in one folder; links to files that are no pages lead to the repository.
set -euo pipefail
cd "$(dirname "$0")/.."
mdbook=target/tools/bin/mdbook
out=$PWD/target/book
repository=$(sed -n 's/^git-repository-url = "\(.*\)"/\1/p' docs/book.toml)/blob/main

rm -rf "$out"
mkdir -p "$out/src"
cp docs/book.toml "$out/"
for page in README.md CONTRIBUTING.md docs/*.md; do
	FILES=$repository perl -pe '
		s{\]\((?:docs/|\.\./(?=README|CONTRIBUTING))}{](}g;
		s{\]\((?!https?:|#|\w+\.md)(?:\.\./)?}{]($ENV{FILES}/}g;
	' "$page" >"$out/src/${page#docs/}"
done
"$mdbook" build --dest-dir "$out/html" "$out"

cd "$out/html"
broken=0
for page in *.html; do
	# toc.html and print.html hold the links of all others once more.
	case $page in toc.html | print.html) continue ;; esac
	while read -r link; do
		file=${link%%#*} anchor=
		[[ $link != *#* ]] || anchor=${link#*#}
		file=${file:-$page}
		if [ ! -e "$file" ] || { [ -n "$anchor" ] && ! grep -qF "id=\"$anchor\"" "$file"; }; then
			echo "$page: $link leads nowhere" >&2
			broken=1
		fi
	done < <(grep -oP '(?<= href=")(?![a-z]+:)[^"]+' "$page" | sort -u)
done
[ $broken = 0 ] && echo "the book: $out/html/index.html"
