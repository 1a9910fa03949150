"What pip needs to know about the package; every fact is read from settings.ini"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg, lib = ini['DEFAULT'], ini['DEFAULT']['lib_name']
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}

setup(
    name=cfg['name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license=cfg['license'],
    license_files=['LICENSE'],
    keywords=cfg['keywords'].split(),
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    packages=[*find_packages(include=[lib, f'{lib}.*']), f'{lib}.notebooks'],
    package_dir={f'{lib}.notebooks': 'nbs/run'},    # a wheel carries the notebooks that papermill runs
    package_data={lib: ['py.typed', '*.css', '*.md', 'runs/*.csv', 'small/*', 'small/photos/*'], f'{lib}.notebooks': ['*.ipynb']},
    entry_points={'console_scripts': [f'{lib}={lib}.cli:main'], 'nbdev': [f'{lib}={lib}._modidx:d']},
)
