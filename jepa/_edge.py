"""Members of an ensemble in processes of their own

A clip or its features go out, probabilities come back, and the vote goes on without members that do not answer."""
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
    mean = np.array((0.485, 0.456, 0.406), np.float32) # as `jepa.data.normalise`, which needs torch
    std = np.array((0.229, 0.224, 0.225), np.float32)

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
    "Noticed where an answer is read: a member that is gone (OSError), a connection closed meanwhile (TypeError)"
    try: connection.send_bytes(message)
    except (OSError, TypeError): pass


class Fleet:
    "Members in processes of their own"
    def __init__(self,
        files:dict,            # name -> file of `save_ensemble` with one member, or of `export_onnx`
        start_timeout:float=300. # seconds until all must be ready
    ):
        self.processes, self.connections, self.sending = {}, {}, {}
        self.asked = self.sent = self.received = 0 # questions; bytes
        for name, file in files.items(): self._start(name, file)
        for name, file in files.items(): self._await(name, file, start_timeout)

    def _start(self, name, file):
        "A process for one member"
        context = multiprocessing.get_context('spawn')
        self.connections[name], there = context.Pipe()
        self.processes[name] = context.Process(target=_serve, args=(there, str(file)), daemon=True)
        self.processes[name].start()
        there.close()

    def _await(self, name, file, seconds):
        "Wait until a member says that it is ready"
        connection = self.connections[name]
        try: ready = connection.poll(seconds) and connection.recv_bytes() == b'ready'
        except EOFError: ready = False
        if ready: return
        self.close()
        raise RuntimeError(f"member '{name}' did not start from {file}")

    def ask(self,
        array,             # features float16 (N, D), or a clip uint8 (T, H, W, 3)
        timeout:float=30.  # seconds
    )->dict: # name -> (classes,), of the members that answered in time
        "Send an array to all members that are there, and collect what comes back"
        self.asked += 1
        waiting, answers, end = self._ask_all(pack(self.asked, array)), {}, time.monotonic() + timeout
        while waiting and (ready := wait(list(waiting), max(0, end - time.monotonic()))):
            for connection in ready: self._read(connection, waiting, answers)
        return {name: answers[name] for name in self.processes if name in answers}

    def _ask_all(self, message) -> dict: # connection -> name
        "Send a message to every member that has taken the last one"
        waiting = {}
        for name, connection in self.connections.items():
            if name in self.sending and self.sending[name].is_alive(): continue
            self.sending[name] = threading.Thread(target=_send, args=(connection, message), daemon=True)
            self.sending[name].start()
            self.sent += len(message)
            waiting[connection] = name
        return waiting

    def _read(self, connection, waiting, answers):
        "Put a member's reply into `answers`; a reply to an older question comes too late and is dropped"
        try: reply = connection.recv_bytes()
        except (EOFError, OSError): return self._lost(waiting.pop(connection))
        number, probabilities = unpack(reply)
        self.received += len(reply)
        if number == self.asked: answers[waiting.pop(connection)] = probabilities

    def _lost(self, name): self.connections.pop(name).close()

    @property
    def alive(self) -> list: return list(self.connections)

    def kill(self, name):
        "Switch a member off, as a power cut would"
        self.processes[name].kill()
        self.processes[name].join()

    def close(self):
        "End all members"
        for c in self.connections.values(): c.close()
        for p in self.processes.values():
            p.join(5)
            if p.is_alive():
                p.kill()
                p.join()

    def __enter__(self): return self
    def __exit__(self, *_): self.close()


def vote(
    ensemble, # of all members
    answers:dict # from `Fleet.ask`
)->np.ndarray: # (classes,)
    "What the members that answered decide together"
    if not answers: raise RuntimeError('no member answered')
    return ensemble.take(list(answers)).combine(np.concatenate(list(answers.values()))[None])[0]
