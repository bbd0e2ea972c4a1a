// The common part of all clients: node <client>.mjs <url of the client's paths> <scenario>...

export const base = process.argv[2];
export const scenarios = process.argv.slice(3);

/**
 * Run all scenarios at once and print the dispatched events, one JSON line for each scenario.
 *
 * `run(scenario, dispatch)` may return a description of the end; an exception is one, too.
 */
export async function report(run) {
  const one = async (scenario) => {
    const events = [];
    let end;
    try {
      end = (await run(scenario, (event) => events.push(event))) ?? "ended";
    } catch (error) {
      end = `${error.constructor.name}: ${error.message}`;
    }
    console.log(JSON.stringify({ scenario, events, end }));
  };
  await Promise.all(scenarios.map(one));
}
