"""next.py NAME ATTENTION FACTOR ITERATIONS [LR]: the next model, from scratch, around the photographs' encoder"""
import os, sys, time, json
os.environ.setdefault("OMP_NUM_THREADS","1")
sys.path.insert(0,'/work/main/tools/results')
import fgnet_lib, torch, numpy as np, h5py
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
from dataclasses import replace
from pathlib import Path
import fgnet_lib.training as training
if os.environ.get("BF16","1")=="1": training.precision = lambda device: "bf16"
from train_mini import RECIPE, FAR, add_far_heads, remove_far_heads, FarPatches, far_loss
from monai.transforms import Compose
from fgnet_lib.augment import Augment, MissingSection
from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.training import fit
from fgnet_lib.datasets import open_dataset
from fgnet_lib.weights import save_model
from fgnet_lib.affinities import widen_borders
from fgnet_lib.metrics import roc_auc
from fgnet_lib.inference import predict
from fgnet_lib.natural_encoder import build_natural_encoder
name, attention, factor, iterations = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
lr=float(sys.argv[5]) if len(sys.argv)>5 else 2e-3
soft=float(os.environ.get("SOFT","0.35"))
config = replace(MINI, encoder="natural", attention=attention, norm="channel")
torch.manual_seed(11)
model = FGNet(config, fgnet_lib.REPOSITORY/"data/pretrained/encoder_natural.safetensors")
fib = open_dataset("fib25","train").load()
train=fib[:120,:,:]
def turned(v, order):
    return replace(v, raw=np.ascontiguousarray(v.raw.transpose(order)), labels=np.ascontiguousarray(v.labels.transpose(order)))
volumes = [train, turned(train,(1,0,2)), turned(train,(2,1,0)), open_dataset("gala","train").load(), open_dataset("phantom","train").load()]
with h5py.File("/work/shared/em-data/unlabelled/fib25_validation_sample_z000-239.h5") as f: RAW=f["volumes/raw"][:]
OUT="/work/main/out/next"
TEACH=[np.load(f"{OUT}/teacher_{w}.npy",mmap_mode="r") for w in os.environ.get("TEACHERS","shipped nat").split()]
class Next(FarPatches):
    def __getitem__(self, index):
        rng=np.random.default_rng((self.seed,index,7))
        if rng.random()>=soft: return super().__getitem__(index)
        order=[(0,1,2),(1,0,2),(2,1,0)][rng.integers(3)]
        size=np.array(self.patch)+1
        size=size[list(order)]  # order is its own inverse
        start=[int(rng.integers(n-s+1)) for n,s in zip(RAW.shape,size)]
        cut=tuple(slice(a,a+s) for a,s in zip(start,size))
        raw=RAW[cut].transpose(order)
        t=sum(np.asarray(T[(slice(None),*cut)],np.float32) for T in TEACH)/(255*len(TEACH))
        t=t[list(order)].transpose(0,*(a+1 for a in order))
        # affinity channel i of voxel v joins v and its predecessor: a flip moves it by one voxel
        for axis in range(3):
            if rng.random()<.5:
                raw=np.flip(raw,axis); t=np.flip(t,axis+1).copy(); t[axis]=np.roll(t[axis],1,axis)
        if rng.random()<.5:
            raw=raw.swapaxes(1,2); t=t[[0,2,1]].swapaxes(2,3)
        raw,t=raw[1:,1:,1:],t[:,1:,1:,1:]
        self.appearance.set_random_state(int(rng.integers(2**31)))
        raw=np.asarray(self.appearance({"raw":raw.astype(np.float32)/255})["raw"])
        raw=(raw*255).round().clip(0,255)/255
        target=np.zeros((3*(1+len(FAR)),*self.patch),np.float32); mask=np.zeros(target.shape,bool)
        target[:3]=t>.5; mask[:3]=(t<.3)|(t>.75)
        return torch.from_numpy(np.ascontiguousarray(raw[None],np.float32)), torch.from_numpy(target), torch.from_numpy(mask)
a=Augment()
config_t = replace(RECIPE, iterations=iterations, learning_rate=lr, warmup=100, ema=0.998, weights=(4,2,2,1,1), seed=11, freeze_encoder=(factor==0), encoder_lr_factor=factor, checkpoint_every=100)
work=Path(OUT)/name
add_far_heads(model); model.freeze_encoder(config_t.freeze_encoder)
patches = Next(volumes, config_t.patch, a, config_t.seed, config_t.weights)
patches.appearance=Compose([MissingSection(prob=.1), *a._appearance.transforms[2:]])
if os.environ.get("LOOK"):
    i=[k for k in range(30) if np.random.default_rng((11,k,7)).random()<soft][:6]
    import matplotlib; matplotlib.use("agg"); import matplotlib.pyplot as plt
    fig,ax=plt.subplots(6,5,figsize=(20,24))
    for r,k in enumerate(i):
        raw,t,m=patches[k]
        ax[r,0].imshow(raw[0,8],"gray")
        for c in range(3): ax[r,1+c].imshow(t[c,8]*m[c,8]+.5*(~m[c,8]))
        ax[r,4].imshow(raw[0,8],"gray"); ax[r,4].contour(t[2,8],[.5],colors="r",linewidths=.6)
    plt.tight_layout(); plt.savefig("/tmp/long/look.png",dpi=50); sys.exit()
held=fib[120:136,:192,:192]; widened=widen_borders(held.labels,in_3d=True)==0
def look(history):
    k=len(history)
    if k%500==0 or k in (100,250):
        state=torch.random.get_rng_state()
        p=predict(model,held.raw,tile=(16,192,192),progress=False,engine="torch")
        r=[]
        for m_,s in zip(p.attention,(4,8,16)):
            up=m_.repeat(s,1).repeat(s,2)[:, :192,:192]; r.append(f"{roc_auc(up,widened):.3f}/{m_.mean():.2f}/{m_.std():.2f}")
        b=1-p.refined[:3].mean(0)
        print("LOOK",k,round(history.seconds[-1]),"s loss",round(float(np.mean(history.loss[-200:])),4),"attention auc/mean/sd",*r,"A_r auc",round(roc_auc(b,widened),4),flush=True)
        model.train(); torch.random.set_rng_state(state)
h = fit(model, patches, far_loss, config_t, work, look)
remove_far_heads(model)
save_model(model, work/'model.safetensors', {})
