"""`python -m docs_pages`: write every generated block anew."""

from __future__ import annotations

from docs_pages.pages import ROOT, pages, write


def main() -> None:
    changed = write()
    for page in changed:
        print(f"wrote {page.relative_to(ROOT)}")
    print(f"{len(pages())} pages, {len(changed)} changed")


if __name__ == "__main__":
    main()
