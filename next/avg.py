import sys; sys.path.insert(0,'/work/main/tools/results')
import os
os.environ["OMP_NUM_THREADS"]="1"
import fgnet_lib, torch
from dataclasses import replace
from pathlib import Path
from safetensors.torch import load_file
from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.weights import save_model
from train_mini import add_far_heads, remove_far_heads
name,att=sys.argv[1:3]
folder=sorted(Path(f"/work/main/out/next/{name}").glob("checkpoint-*"))[-1]
s={k.removeprefix("module."):v for k,v in load_file(folder/"average.safetensors").items() if k.startswith("module.")}
m=FGNet(replace(MINI,encoder="natural",attention=att,norm="channel")); add_far_heads(m); m.load_state_dict(s)
torch.save(m.state_dict(),f"/work/main/out/next/{name}/far.pt")
remove_far_heads(m); save_model(m,f"/work/main/out/next/{name}/now.safetensors",{"iterations":folder.name}); print(folder.name)
