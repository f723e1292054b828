"""teacher affinities of the unlabelled volume: least of three views, mean of two models"""
import os, sys, time
os.environ.setdefault("OMP_NUM_THREADS","1")
import fgnet_lib, torch, h5py, numpy as np
torch.set_num_threads(1)
import fgnet_lib.engines.runtimes as r
def load(content, threads):
    import openvino
    core=openvino.Core(); c=core.compile_model(core.read_model(content),"CPU",{"INFERENCE_PRECISION_HINT":"bf16","INFERENCE_NUM_THREADS":threads})
    return lambda i: list(c(i).to_tuple())
r.LOADERS["openvino"]=load; r.TOLERANCE=10
from fgnet_lib.weights import load_pretrained, load_model
from fgnet_lib.inference import predict
which=sys.argv[1]
m=load_pretrained() if which=="shipped" else load_model("/tmp/long/nat/model.safetensors")
tile=(16,160,160) if which=="shipped" else (32,256,256)
with h5py.File("/work/shared/em-data/unlabelled/fib25_validation_sample_z000-239.h5") as f: raw=f["volumes/raw"][:]
out=np.lib.format.open_memmap(f"/work/main/out/next/teacher_{which}.npy",mode="w+",dtype=np.uint8,shape=(3,*raw.shape))
step=48
for z in range(0,240,step):
    t=time.time()
    a,b=max(0,z-8),min(240,z+step+8)
    p=predict(m,np.ascontiguousarray(raw[a:b]),tile=tile,progress=False,three_views=True,engine="openvino").refined
    out[:,z:z+step]=(p[:,z-a:z-a+step]*255).round().astype(np.uint8); out.flush()
    print(which,z,round(time.time()-t,1),flush=True)
