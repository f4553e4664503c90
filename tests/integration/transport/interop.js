// The interop list with @grpc/grpc-js. Prints each case that held; the first that does not ends it with status 1.
const assert = require('assert');
const grpc = require('@grpc/grpc-js');

const [target, service] = process.argv.slice(2);
const same = (bytes) => bytes;
const client = new grpc.Client(target, grpc.credentials.createInsecure());
const json = (value, size = 0) => Buffer.from(JSON.stringify(value).padEnd(size));
const path = (name) => `/${service}/${name}`;
const deadline = (ms = 20000) => ({ deadline: Date.now() + ms });

const unary = (name, message, { metadata = new grpc.Metadata(), options = deadline() } = {}) =>
  new Promise((resolve) => {
    const seen = {};
    const call = client.makeUnaryRequest(path(name), same, same, message, metadata, options, (error, answer) => {
      seen.error = error;
      seen.answer = answer;
    });
    call.on('metadata', (initial) => { seen.initial = initial; });
    call.on('status', (status) => { seen.status = status; setImmediate(() => resolve(seen)); });
  });
const duplex = (name, options = deadline()) =>
  client.makeBidiStreamRequest(path(name), same, same, new grpc.Metadata(), options);
const ended = (call) => new Promise((resolve) => {
  call.on('error', () => {});
  call.on('status', resolve);
});

const cases = {
  async empty_unary() {
    assert.strictEqual((await unary('EmptyCall', Buffer.alloc(0))).answer.length, 0);
  },
  async large_unary() {
    assert.strictEqual((await unary('UnaryCall', json({ size: 314159 }, 271828))).answer.length, 314159);
  },
  async client_streaming() {
    const answer = await new Promise((resolve, reject) => {
      const call = client.makeClientStreamRequest(path('StreamingInputCall'), same, same, new grpc.Metadata(), deadline(),
        (error, value) => (error ? reject(error) : resolve(value)));
      [27182, 8, 1828, 45904].forEach((size) => call.write(json({}, size)));
      call.end();
    });
    assert.strictEqual(JSON.parse(answer).total, 27182 + 8 + 1828 + 45904);
  },
  async server_streaming() {
    const sizes = [31415, 9, 2653, 58979];
    const call = client.makeServerStreamRequest(path('StreamingOutputCall'), same, same, json({ sizes }), new grpc.Metadata(), deadline());
    const got = [];
    call.on('data', (answer) => got.push(answer.length));
    assert.strictEqual((await ended(call)).code, 0);
    assert.deepStrictEqual(got, sizes);
  },
  async ping_pong() {
    const sizes = [31415, 9, 2653, 58979];
    const call = duplex('FullDuplexCall');
    const status = ended(call);
    const got = [];
    const ask = () => (got.length < sizes.length ? call.write(json({ sizes: [sizes[got.length]] }, 27182)) : call.end());
    call.on('data', (answer) => { got.push(answer.length); ask(); });
    ask();
    assert.strictEqual((await status).code, 0);
    assert.deepStrictEqual(got, sizes);
  },
  async empty_stream() {
    const call = duplex('FullDuplexCall');
    const status = ended(call);
    call.on('data', () => assert.fail('there is nothing to answer'));
    call.end();
    assert.strictEqual((await status).code, 0);
  },
  async status() {
    const words = '\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n';
    const { status } = await unary('UnaryCall', json({ status: [2, words] }));
    assert.strictEqual(status.code, 2);
    assert.strictEqual(status.details, words);
  },
  async unimplemented() {
    assert.strictEqual((await unary('UnimplementedCall', json({}))).status.code, grpc.status.UNIMPLEMENTED);
  },
  async cancel_after_begin() {
    const call = client.makeClientStreamRequest(path('StreamingInputCall'), same, same, new grpc.Metadata(), deadline(), () => {});
    const status = ended(call);
    call.cancel();
    assert.strictEqual((await status).code, grpc.status.CANCELLED);
  },
  async cancel_after_first_response() {
    const call = duplex('FullDuplexCall');
    const status = ended(call);
    call.on('data', () => call.cancel());
    call.write(json({ sizes: [31415] }));
    assert.strictEqual((await status).code, grpc.status.CANCELLED);
  },
  async timeout() {
    const { status } = await unary('UnaryCall', json({ sleep: true }), { options: deadline(100) });
    assert.strictEqual(status.code, grpc.status.DEADLINE_EXCEEDED);
  },
  async custom_metadata() {
    const metadata = new grpc.Metadata();
    metadata.set('x-grpc-test-echo-initial', 'test_initial_metadata_value');
    metadata.set('x-grpc-test-echo-trailing-bin', Buffer.from([0xab, 0xab, 0xab]));
    const { initial, status } = await unary('UnaryCall', json({}), { metadata });
    assert.deepStrictEqual(initial.get('x-grpc-test-echo-initial'), ['test_initial_metadata_value']);
    assert.deepStrictEqual(status.metadata.get('x-grpc-test-echo-trailing-bin')[0], Buffer.from([0xab, 0xab, 0xab]));
  },
};

(async () => {
  for (const [name, hold] of Object.entries(cases)) {
    await hold();
    console.log(name);
  }
  client.close();
})().catch((error) => { console.error(error); process.exit(1); });
