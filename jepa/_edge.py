"""Members of an ensemble in processes of their own: a clip or its features go out, probabilities come back, and the vote goes on without those that do not answer"""
import io, multiprocessing, struct, threading, time
from multiprocessing.connection import wait

import numpy as np


def pack(number:int, array) -> bytes:
    "A message: the number of the question, and an array as .npy"
    buffer = io.BytesIO(struct.pack('<q', number))
    buffer.seek(8)
    np.save(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def unpack(message:bytes) -> tuple[int, np.ndarray]:
    "The number of the question, and the array"
    return struct.unpack('<q', message[:8])[0], np.load(io.BytesIO(message[8:]), allow_pickle=False)


def _torch_member(file):
    "An ensemble file of one member: features float16 (N, D), or a clip uint8 (T, H, W, 3), to probabilities"
    import torch
    torch.set_num_threads(1)
    from jepa.data import normalise
    from jepa.ensemble import load_ensemble
    ensemble = load_ensemble(file)
    [(name, probe)] = ensemble.members.items()
    encoder = ensemble.encoders.get(ensemble.encoder_of.get(name))
    if encoder is not None: encoder.eval()

    @torch.inference_mode()
    def answer(x):
        if x.dtype == np.uint8: x = encoder(normalise(torch.from_numpy(x).permute(0, 3, 1, 2))[None])[0].numpy()
        return probe.model(torch.from_numpy(x.astype(np.float32))[None]).softmax(-1)[0].numpy()
    return answer


def _onnx_member(file):
    "A file of `export_onnx`: a clip uint8 (T, H, W, 3) to probabilities, without torch"
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))) # as `jepa.data.normalise`

    def answer(x):
        clips = ((x.astype(np.float32)/255 - mean)/std).transpose(3, 0, 1, 2)[None]
        return session.run(None, {'clips': np.ascontiguousarray(clips)})[0][0]
    return answer


def _serve(connection, file):
    "The life of a member: say that it is ready, then answer until the connection is closed"
    answer = (_onnx_member if str(file).endswith('.onnx') else _torch_member)(file)
    connection.send_bytes(b'ready')
    while True:
        try: number, x = unpack(connection.recv_bytes())
        except EOFError: return
        connection.send_bytes(pack(number, answer(x)))


def _send(connection, message):
    try: connection.send_bytes(message)
    except OSError: pass # the member is gone: noticed where its answer is read


class Fleet:
    "Members in processes of their own"
    def __init__(self,
        files:dict,            # name -> file of `save_ensemble` with one member, or of `export_onnx`
        start_timeout:float=300. # seconds until all must be ready
    ):
        context = multiprocessing.get_context('spawn')
        self.processes, self.connections, self.sending, self.asked, self.sent, self.received = {}, {}, {}, 0, 0, 0
        for name, file in files.items():
            here, there = context.Pipe()
            self.processes[name] = context.Process(target=_serve, args=(there, str(file)), daemon=True)
            self.processes[name].start(); there.close()
            self.connections[name] = here
        for name, c in self.connections.items():
            try: ready = c.poll(start_timeout) and c.recv_bytes() == b'ready'
            except EOFError: ready = False
            if not ready: self.close(); raise RuntimeError(f"member '{name}' did not start from {files[name]}")

    def ask(self, array, timeout:float=30.) -> dict: # name -> (classes,), of those that answered in time
        "Send an array to all members that are there, and collect what comes back"
        self.asked, answers, waiting = self.asked + 1, {}, {}
        message = pack(self.asked, array)
        for name, c in self.connections.items():
            if name in self.sending and self.sending[name].is_alive(): continue # it has not even taken the last question
            self.sending[name] = threading.Thread(target=_send, args=(c, message), daemon=True)
            self.sending[name].start()
            waiting[c], self.sent = name, self.sent + len(message)
        end = time.monotonic() + timeout
        while waiting and (ready := wait(list(waiting), max(0, end - time.monotonic()))):
            for c in ready:
                try: reply = c.recv_bytes()
                except (EOFError, OSError): self._lost(waiting.pop(c)); continue
                number, p = unpack(reply)
                self.received += len(reply)
                if number == self.asked: answers[waiting.pop(c)] = p # an older one comes too late and is dropped
        return {name: answers[name] for name in self.processes if name in answers}

    def _lost(self, name): self.connections.pop(name).close()

    @property
    def alive(self) -> list: return list(self.connections)

    def kill(self, name):
        "Switch a member off, as a power cut would"
        self.processes[name].kill()
        self.processes[name].join()

    def close(self):
        for c in self.connections.values(): c.close()
        for p in self.processes.values():
            p.join(5)
            if p.is_alive(): p.kill(); p.join()

    def __enter__(self): return self
    def __exit__(self, *_): self.close()


def vote(
    ensemble, # of all members
    answers:dict # from `Fleet.ask`
)->np.ndarray: # (classes,)
    "What the members that answered decide together"
    if not answers: raise RuntimeError('no member answered')
    return ensemble.take(list(answers)).combine(np.concatenate(list(answers.values()))[None])[0]
