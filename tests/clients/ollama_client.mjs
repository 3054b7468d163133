// Runs one scenario with Ollama's JavaScript client and prints what it saw as JSON.
// node ollama_client.mjs <url> <scenario> <argument as JSON>
import { Ollama } from 'ollama'

const [url, scenario, argument] = process.argv.slice(2)
const client = new Ollama({ host: url })
const greedy = { temperature: 0 }
const question = 'What is ollmlx?'
const user = (content, more) => ({ role: 'user', content, ...more })
const collect = async (stream) => {
  const parts = []
  for await (const part of stream) parts.push(part)
  return parts
}
const failure = async (promise) => {
  try {
    await promise
  } catch (error) {
    return { status: error.status_code, text: error.error ?? error.message }
  }
  return null
}
const weather = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'Get the weather of a city',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string', description: 'The city' } },
      required: ['city'],
    },
  },
}

const scenarios = {
  async generate() {
    const request = { model: 'demo', prompt: question, think: false, options: greedy }
    return { whole: await client.generate(request), parts: await collect(await client.generate({ ...request, stream: true })) }
  },
  async chat() {
    const request = { model: 'demo', messages: [user(question)], think: false, options: greedy }
    return { whole: await client.chat(request), parts: await collect(await client.chat({ ...request, stream: true })) }
  },
  async thinking() {
    const request = { model: 'demo', messages: [user(question)], think: 'high', options: greedy }
    return { whole: await client.chat(request), parts: await collect(await client.chat({ ...request, stream: true })) }
  },
  async tools() {
    const messages = [user('What is the weather in Paris?')]
    const request = { model: 'demo', think: false, options: greedy, tools: [weather] }
    const called = await client.chat({ ...request, messages })
    const parts = await collect(await client.chat({ ...request, messages, stream: true }))
    messages.push(called.message, { role: 'tool', tool_name: 'get_weather', content: 'sunny, 24 degrees' })
    return { called, parts, final: await client.chat({ ...request, messages }) }
  },
  async structured() {
    const format = JSON.parse(argument)
    const request = { model: 'demo', messages: [user(question)], think: false, options: { ...greedy, num_predict: 300 } }
    return { schema: await client.chat({ ...request, format }), json: await client.chat({ ...request, messages: [user('Answer in JSON: what is ollmlx?')], format: 'json' }) }
  },
  async logprobs() {
    return client.generate({ model: 'demo', prompt: question, think: false, logprobs: true, top_logprobs: 2, options: { ...greedy, num_predict: 4 } })
  },
  async embeddings() {
    return {
      many: await client.embed({ model: 'demo', input: ['a server', 'the weather'], dimensions: 8 }),
      old: await client.embeddings({ model: 'demo', prompt: 'a server' }),
    }
  },
  async manage() {
    const progress = await collect(await client.create({ model: 'from-js', from: 'demo', system: 'Answer in JSON.', parameters: { temperature: 0 }, stream: true }))
    const shown = await client.show({ model: 'from-js' })
    await client.copy({ source: 'from-js', destination: 'copied-js' })
    const loaded = await client.generate({ model: 'copied-js', prompt: '', keep_alive: '1m' })
    const running = await client.ps()
    const unloaded = await client.chat({ model: 'copied-js', messages: [], keep_alive: 0 })
    const names = (await client.list()).models.map((m) => m.name)
    const deleted = [await client.delete({ model: 'from-js' }), await client.delete({ model: 'copied-js' })]
    return { progress, shown, loaded, running, unloaded, names, deleted, version: await client.version() }
  },
  async pull() {
    return { whole: await client.pull({ model: 'demo' }), parts: await collect(await client.pull({ model: 'demo', stream: true })) }
  },
  async errors() {
    const image = Buffer.from(argument, 'base64')
    return {
      missing: await failure(client.chat({ model: 'no-such-model', messages: [user('Hi')] })),
      missingStreamed: await failure(client.chat({ model: 'no-such-model', messages: [user('Hi')], stream: true })),
      image: await failure(client.generate({ model: 'demo', prompt: 'What is it?', images: [new Uint8Array(image)] })),
      push: await failure(client.push({ model: 'nobody/nothing' })),
      option: await failure(client.generate({ model: 'demo', prompt: 'x', options: { top_k: 'many' } })),
    }
  },
  // The stream ends in the client's AbortError, and the server is free for the next request.
  async abort() {
    const stream = await client.chat({ model: 'demo', messages: [user(question)], options: { num_predict: 5000 }, stream: true })
    let parts = 0
    let error
    try {
      for await (const _ of stream) if (++parts === 3) stream.abort()
    } catch (e) {
      error = e.name
    }
    return { parts, error, next: await client.generate({ model: 'demo', prompt: 'Hello', think: false, options: greedy }) }
  },
}

console.log(JSON.stringify(await scenarios[scenario]()))
