# A runner with your team in it. Build it where app.py and requirements.txt are:
#   docker build --file …/deploy/runner.Dockerfile --tag my-team:1.0.0 .

FROM coterie:0.1.0
USER 0
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --requirement /tmp/requirements.txt && rm /tmp/requirements.txt
COPY . /app
USER 10001:10001
