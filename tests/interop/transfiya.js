// The network's own published packages, asked by test_interop_transfiya.py: one JSON object in, one
// out. Verifies what we made, and makes records of its own for us to verify.
'use strict'

const { createRequire } = require('module')
const path = require('path')

const load = createRequire(path.join(process.argv[2], 'package.json'))
const sdk = load('@webwallet/sdk')
const { hashing, signing } = load('@webwallet/cryptools')
const ledger = load('@minka/ledger-sdk/crypto')
const { LedgerSdk } = load('@minka/ledger-sdk')

function judgeIou(iou) {
  const hash = hashing.create({ data: iou.data, algorithms: 'sha256:sha256' })
  const written = sdk.iou.write({ ...iou.data }) // its schema throws
  return {
    hash: hash === iou.hash.value && written.hash.value === iou.hash.value,
    signatures: iou.meta.signatures.map(one =>
      one.linker === 'sha256:ripemd160' &&
      one.signer === sdk.address.generate({ data: one.public }) &&
      signing.verify({
        scheme: one.scheme, message: iou.hash.value, signature: one.string, publicKey: one.public
      }))
  }
}

function makeIou(scheme, compressed, claims) {
  const [source, target] = [0, 1].map(() => {
    const pair = sdk.keypair.generate({ scheme, compressed })
    return { ...pair, signer: sdk.address.generate({ data: pair.public }) }
  })
  const whole = { ...claims, source: source.signer, target: target.signer, symbol: target.signer }
  return { iou: sdk.iou.write(whole).sign([source]), key: source }
}

async function judgeRecord(record) {
  const client = new LedgerSdk({ server: 'https://ledger.invalid/v2' })
  const result = { hash: ledger.createHash(record.data) === record.hash, proofs: true, client: true }
  for (const proof of record.meta.proofs) {
    result.proofs = result.proofs && await ledger.verifySignature(record.hash, proof)
  }
  try { await client.proofs.length(1).verify(record) } catch (error) { result.client = false }
  return result
}

async function makeRecord(data, custom) {
  const pair = await ledger.createKeyPair()
  const hash = ledger.createHash(data)
  const now = Math.floor(Date.now() / 1000)
  const claims = { iss: 'rojo', sub: 'signer:rojo', aud: 'ledger', iat: now, exp: now + 60 }
  return {
    record: { hash, data, meta: { proofs: [await ledger.signHash(hash, pair, custom)] } },
    public: pair.public,
    token: await ledger.signJWT(claims, pair.secret, pair.public)
  }
}

async function judgeToken(token, key) {
  try {
    return (await ledger.verifyJWT(token, key)).payload
  } catch (error) {
    return null
  }
}

async function main() {
  let text = ''
  for await (const piece of process.stdin) text += piece
  const asked = JSON.parse(text)
  const answer = {
    ious: asked.ious.map(judgeIou),
    made_ious: asked.claims.map(one => makeIou(one.scheme, one.compressed, one.claims)),
    records: await Promise.all(asked.records.map(judgeRecord)),
    made_records: await Promise.all(asked.data.map(one => makeRecord(one.data, one.custom))),
    tokens: await Promise.all(asked.tokens.map(one => judgeToken(one.token, one.public)))
  }
  process.stdout.write(JSON.stringify(answer))
}

main().catch(error => { console.error(error); process.exit(1) })
