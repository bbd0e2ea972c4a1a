// What all clients share: node <client>.mjs <url of the client's paths> <scenario>...

export const base = process.argv[2];
export const scenarios = process.argv.slice(3);

/**
 * Run all scenarios at once and print what each has dispatched, one JSON line a scenario.
 *
 * `run(scenario, dispatch)` answers how the stream has ended, if there is more to say than that
 * it has; what it throws is such an end too.
 */
export async function tell(run) {
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
