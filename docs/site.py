"""Makes the MkDocs site mirror the repository, so that one relative link works in both."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of docs/ by those that ``extra.mirrored`` in mkdocs.yml names, by their
    repository paths.
    """
    root = Path(config.config_file_path).parent
    # what the theme brings
    site = Files([file for file in files if file.src_dir != config.docs_dir])
    for pattern in config.extra["mirrored"]:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            site.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return site
