#!/usr/bin/env bash
# Runs inside Colab's image: every lesson from an empty folder, so that its set-up cell fetches and installs, and then a
# look at whether anything that was there changed. Executed lessons go to /executed.
set -euo pipefail

# papermill in a folder of its own, which the kernel does not see; a venv would need ensurepip, and Colab may lack it
python3 -m pip install --quiet --target /tmp/runner papermill
python3 -m ipykernel install --prefix /tmp/kernel --name lessons
export JUPYTER_PATH=/tmp/kernel/share/jupyter
papermill='import sys; sys.path.insert(0, "/tmp/runner"); from papermill.__main__ import papermill; papermill()'
python3 -m pip freeze | sort >/tmp/before.txt

failed=0
for lesson in /course/notebooks/[0-9][0-9]_*.ipynb; do
  name=$(basename "$lesson" .ipynb)
  start=$SECONDS
  # not on Colab's page: without this variable no lesson asks that page for an address
  env -u COLAB_RELEASE_TAG python3 -c "$papermill" "$lesson" "/executed/$name.ipynb" --kernel lessons --no-progress-bar \
    -r PROFILE fast -r DATASET phantom -r DEVICE cpu || { failed=1; echo "::error::$name failed in Colab's image"; }
  echo "$name: $((SECONDS - start)) s"
done

python3 -m pip freeze | sort >/tmp/after.txt
if comm -23 /tmp/before.txt /tmp/after.txt | grep .; then
  echo "::error::the lines above were changed by the set-up cell"
  failed=1
fi
exit "$failed"
