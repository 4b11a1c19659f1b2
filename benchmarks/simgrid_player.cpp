// The same player as simgrid_player.py in C++, so that wall times are not those of Python's threads.
//
// Standard input, whitespace between all numbers: ranks, links, then capacity and latency of each link; number of
// routes, each as source, target, number of links, links; number of rounds, each as number of messages and then source,
// target and bytes of each. Standard output: JSON with time_s (simulated) and wall_s (of the simulation alone).
#include <simgrid/s4u.hpp>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <map>
#include <string>
#include <vector>

namespace sg4 = simgrid::s4u;

struct Posted {
  std::vector<std::pair<sg4::Mailbox*, double>> sends;
  std::vector<sg4::Mailbox*> receives;
};

static void rank_main(const std::vector<Posted>& rounds)
{
  static int payload = 0;
  for (const Posted& round : rounds) {
    std::vector<void*> received(round.receives.size());
    std::vector<sg4::CommPtr> pending;
    for (size_t i = 0; i < round.receives.size(); i++)
      pending.push_back(round.receives[i]->get_async<void>(&received[i]));
    for (const auto& [mailbox, bytes] : round.sends)
      pending.push_back(mailbox->put_async(&payload, static_cast<uint64_t>(bytes)));
    sg4::Comm::wait_all(pending);
  }
}

int main(int argc, char** argv)
{
  sg4::Engine engine(&argc, argv);
  for (const char* setting : {"network/model:CM02", "network/TCP-gamma:0", "network/crosstraffic:0"})
    sg4::Engine::set_config(setting);
  std::ios::sync_with_stdio(false);
  size_t ranks, num_links, count;
  std::cin >> ranks >> num_links;
  auto* zone = sg4::create_full_zone("platform");
  std::vector<const sg4::Link*> links;
  for (size_t i = 0; i < num_links; i++) {
    double capacity, latency;
    std::cin >> capacity >> latency;
    links.push_back(zone->create_link("link " + std::to_string(i), capacity)->set_latency(latency)->seal());
  }
  std::vector<sg4::Host*> hosts;
  for (size_t i = 0; i < ranks; i++)
    hosts.push_back(zone->create_host("rank " + std::to_string(i), 1e9)->seal());
  std::cin >> count;
  for (size_t i = 0; i < count; i++) {
    size_t source, target, length, link;
    std::cin >> source >> target >> length;
    std::vector<sg4::LinkInRoute> route;
    for (size_t j = 0; j < length; j++) {
      std::cin >> link;
      route.emplace_back(links[link]);
    }
    zone->add_route(hosts[source]->get_netpoint(), hosts[target]->get_netpoint(), nullptr, nullptr, route, false);
  }
  zone->seal();
  std::vector<std::vector<Posted>> work(ranks);
  std::cin >> count;
  for (size_t number = 0; number < count; number++) {
    size_t messages, source, target;
    double bytes;
    std::map<size_t, Posted> here;
    std::cin >> messages;
    for (size_t i = 0; i < messages; i++) {
      std::cin >> source >> target >> bytes;
      auto* mailbox = sg4::Mailbox::by_name(std::to_string(number) + " " + std::to_string(source) + " " +
                                            std::to_string(target));
      here[source].sends.emplace_back(mailbox, bytes);
      here[target].receives.push_back(mailbox);
    }
    for (auto& [rank, posted] : here)
      work[rank].push_back(std::move(posted));
  }
  for (size_t i = 0; i < ranks; i++)
    sg4::Actor::create("rank", hosts[i], [&work, i]() { rank_main(work[i]); });
  const auto start = std::chrono::steady_clock::now();
  engine.run();
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  std::printf("{\"time_s\": %.17g, \"wall_s\": %.9g}\n", sg4::Engine::get_clock(), wall.count());
  return 0;
}
