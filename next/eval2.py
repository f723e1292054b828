"""eval2.py MODEL: threshold on seven parts, intervention on 120-139; with VAL=1 also validation and unseen tissue"""
import os,sys,json,time
os.environ["OMP_NUM_THREADS"]="1"
sys.path.insert(0,'/work/main/tools/results')
import fgnet_lib, torch, numpy as np
torch.set_num_threads(1)
import fgnet_lib.engines.runtimes as r
from fgnet_lib.weights import load_model
from fgnet_lib.datasets import open_dataset
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate, roc_auc
from fgnet_lib.affinities import widen_borders
from fgnet_lib.segmentation import segment, sweep
from fgnet_lib.study.evaluation import predict_rescaled, VOLUMES
from fgnet_lib.probing import attention_set_to
from train_mini import PARTS, THRESHOLDS
m=load_model(sys.argv[1]).eval(); fib=open_dataset("fib25","train").load()
T=[*THRESHOLDS,.93,.95]
tile=(20,256,256)
def voi(a,v,t): e=evaluate(segment(a,v.voxel_size,t,strict=False),v.labels); return e.voi_split+e.voi_merge,e
curve={}
for p in PARTS:
    a,b=map(int,p.split("-")); v=fib[a:b+1,:,:]
    aff=predict(m,v.raw,tile=tile,progress=False,engine="openvino").refined
    segs=sweep(aff,v.voxel_size,T,strict=False)
    curve[p]=[(lambda e:e.voi_split+e.voi_merge)(evaluate(segs[t],v.labels)) for t in T]
mean=np.mean(list(curve.values()),0); t=T[int(mean.argmin())]
print("threshold",t,"parts",round(float(mean.min()),3),"120-139",round(curve["120-139"][int(mean.argmin())],3),flush=True)
v=fib[120:140,:,:]; w=widen_borders(v.labels,in_3d=True)==0
p=predict(m,v.raw,tile=tile,progress=False,engine="torch"); base,_=voi(p.refined,v,t)
for level,(a,s) in enumerate(zip(p.attention,m.config.strides),1):
    up=a.repeat(s,1).repeat(s,2)[:, :v.shape[1], :v.shape[2]]; out=[]
    for value in ("mean",0.0,1.0):
        with attention_set_to(m,level,value): q=predict(m,v.raw,tile=tile,progress=False,engine="torch").refined
        out.append(f"{value}: {voi(q,v,t)[0]-base:+.3f}")
    print(f"120-139 VOI {base:.3f} a{level} AUC {roc_auc(up,w):.3f} mean {a.mean():.2f} std {a.std():.2f}",*out,flush=True)
if os.environ.get("VAL"):
    for n,rs in VOLUMES.items():
        x=open_dataset(n,"val").load()
        for views in ((False,True) if n in("fib25",) else (False,)):
            p=predict_rescaled(m,x,rs,views) 
            e=voi(p.refined,x,t)[1]; print(n,"views" if views else "",f"VOI {e.voi_split+e.voi_merge:.3f} ({e.voi_split:.3f}+{e.voi_merge:.3f}) ARAND {e.arand:.3f}; A_s {voi(p.coarse,x,t)[0]:.3f}",flush=True)
            if n=="fib25": print("curve",[(tt,round((lambda e:e.voi_split+e.voi_merge)(evaluate(sg,x.labels)),3)) for tt,sg in sweep(p.refined,x.voxel_size,T,strict=False).items()],flush=True)
