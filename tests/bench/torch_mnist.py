#!/usr/bin/python3
"""The peer of the MNIST benchmark: linear 784-100, FF 100-400-100 with ReLU, linear 100-10, AdamW, in PyTorch."""
import argparse, json, resource, statistics, time
import torch, torch.nn as nn, torch.nn.functional as F

p = argparse.ArgumentParser()
for name, value in dict(batch=64, threads=2, steps=400, warm=50).items():
    p.add_argument('--' + name, type=int, default=value)
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.up, self.down, self.out = nn.Linear(784, 100), nn.Linear(100, 400), nn.Linear(400, 100), nn.Linear(100, 10)

    def forward(self, x):
        return self.out(self.down(F.relu(self.up(self.a(x)))))


X, Y = torch.rand(6000, 784), torch.randint(0, 10, (6000,))
net = Net()
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, foreach=True)
times = []
for i in range(a.warm + a.steps):
    begin = time.perf_counter()
    at = i * a.batch % (6000 - a.batch)
    loss = F.cross_entropy(net(X[at:at + a.batch]), Y[at:at + a.batch])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if i >= a.warm:
        times.append(time.perf_counter() - begin)
print(json.dumps(dict(unit='images', per_second=a.batch / statistics.median(times),
                      per_second_best=a.batch / min(times), per_second_worst=a.batch / max(times),
                      step_ms=1e3 * statistics.median(times),
                      peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)))
