"""Models: an untouched Hugging Face causal language model, its tokenizer and the names of its sites.

- `loading`         `load_model`: alias, hub id, folder or objects -> `LanguageModel`
- `language_model`  the object everything else takes
- `tokens`          prompts -> token ids, padding, absolute positions
- `fingerprint`     what makes two models the same model
- `aliases`, `pull`, `cache`  models that come as a package, fetched once, checked and kept
"""
