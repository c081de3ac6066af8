#!/usr/bin/env bash
# What a CUDA device says of peft-dp, in one command: installs what was brought along, then runs gpu_check.py.
#
#   bash gpu_check.sh first  [options of gpu_check.py]   # proofs, training, speed, the papers' time and memory rows
#   bash gpu_check.sh second [options]                   # the embedded encoder's cells, once both halves of it are here
#   bash gpu_check.sh try    [options]                   # the same script on a CPU, with tiny models
#
# Beside this file may lie, as gpu_pack.sh makes them: whl/ (wheels that the machine lacks), project/ (the checkout;
# else the current folder is taken), minilm/ (files of all-MiniLM-L6-v2, its weights in parts), glue/ (real data).
# Results are written to $OUT (or ./gpu_check_out) as they come. What a second call needs is kept in $KEEP.
set -u
here=$(cd "$(dirname "$0")" && pwd)
what=${1:-first}
[ $# -gt 0 ] && shift
keep=${KEEP:-${TMPDIR:-/tmp}/peft-dp-check}
out=${OUT:-$PWD/gpu_check_out}
python=${PYTHON:-python3}
began=$SECONDS
mkdir -p "$keep/parts" "$out"

if compgen -G "$here/whl/*.whl" >/dev/null && [ ! -e "$keep/site/.done" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$keep/site" "$here"/whl/*.whl \
    >"$out/install.txt" 2>&1 && touch "$keep/site/.done" || { tail -3 "$out/install.txt"; exit 1; }
  rm -f "$out/install.txt"
fi
[ -d "$keep/site" ] && export PYTHONPATH="$keep/site${PYTHONPATH:+:$PYTHONPATH}"
[ -d "$here/project" ] && { rm -rf "$keep/project"; cp -r "$here/project" "$keep/project"; }
project=${PROJECT:-$([ -d "$keep/project" ] && echo "$keep/project" || echo "$PWD")}
compgen -G "$here/minilm/*" >/dev/null && cp -r "$here"/minilm/* "$keep/parts/"
[ -d "$here/glue" ] && { rm -rf "$keep/glue"; cp -r "$here/glue" "$keep/glue"; }

model=$keep/backbones/all-MiniLM-L6-v2
if [ ! -f "$model/model.safetensors" ] && [ "$(ls "$keep"/parts/model.safetensors.* 2>/dev/null | wc -l)" -ge 2 ]; then
  mkdir -p "$model"
  cat "$keep"/parts/model.safetensors.* >"$model/model.safetensors"
  find "$keep/parts" -maxdepth 1 -type f ! -name 'model.safetensors.*' -exec cp {} "$model/" \;
fi
[ -d "$model" ] && set -- --backbones "$keep/backbones" "$@"
[ -d "$keep/glue" ] && set -- --data "$keep/glue" "$@"
case $what in
  first) set -- --minutes "$(awk "BEGIN{print 8.2 - ($SECONDS - $began) / 60}")" --skip weights "$@" ;;
  second) set -- --minutes "$(awk "BEGIN{print 2.6 - ($SECONDS - $began) / 60}")" --only weights "$@" ;;
  try) set -- --device cpu --tiny --side 1 --minutes 8 --skip bench,bench_rest,share4,weights "$@" ;;
  *) echo "first, second or try, not $what"; exit 2 ;;
esac
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false KINETO_LOG_LEVEL=99
export PYTORCH_NVML_BASED_CUDA_CHECK=1 # a look at the device must not keep it from forked processes
"$python" "$here/gpu_check.py" --project "$project" --out "$out" "$@"
