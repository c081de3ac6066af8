# The papers' rows on a GPU; needs NVIDIA's container runtime. Written but never built here: say so if it fails.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends git python3 python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /peft-dp
COPY . .
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir -c constraints.txt -e '.[embedded,libraries,parallel]'
ENV PATH=/venv/bin:$PATH
ENTRYPOINT ["pytest", "bench"]
CMD ["-m", "gpu", "--peft-strict"]
