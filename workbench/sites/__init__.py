"""Sites: places in a model whose tensor can be read or edited, named as in TransformerLens.

- `names`    the grammar of names: globs, braces, lists, aliases, near misses
- `adapter`  the only module that imports transformer_lens: architecture -> name map
- `namemap`  that map as plain data, kept in the cache folder so it is worked out once
- `catalog`  name map + Hugging Face modules -> the sites this very model has, and why it lacks the others
"""

from workbench.sites.catalog import Catalog, Site
from workbench.sites.names import expand

__all__ = ["Catalog", "Site", "expand"]
