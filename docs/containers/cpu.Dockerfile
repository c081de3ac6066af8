# The main job and the rows through libraries, without a GPU. Written but never built here: say so if it fails.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
WORKDIR /peft-dp
COPY . .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt -e '.[embedded,libraries]'
ENTRYPOINT ["pytest", "bench"]
CMD ["-m", "libraries"]
