"""The parts of the synthetic city: solids, the street and its ground, materials, sensors, ray casting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.city import things
from bench.city.config import SIZES, CityConfig
from bench.city.ground import Patch, Street, make_ground
from bench.city.layout import lay_out
from bench.city.materials import MATERIALS, PATTERNS, Stuff, Surface, surface
from bench.city.render import Stage
from bench.city.scene import Scene, generator
from bench.city.sensors import ELEVATIONS_DEG, RIG, Echoes, camera_rays, echoes, lidar_rays
from bench.city.shapes import EMPTY, Mesh, ball, box, join, leaves, prism, rod, sheet

STRAIGHT = Street(0.0, np.zeros((1, 4)))


def area(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices_m[mesh.triangles[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def volume(mesh: Mesh) -> float:
    """Of a closed mesh whose triangles all turn the same way round; 0 and nonsense otherwise."""
    a, b, c = (mesh.vertices_m[mesh.triangles[:, i]] for i in range(3))
    return abs(float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6))


def test_a_box_stands_on_its_place_and_is_closed() -> None:
    mesh = box((2, 3, 4), (10, 20, 30), Stuff.METAL)
    np.testing.assert_allclose(mesh.vertices_m.min(axis=0), (9, 18.5, 30))
    np.testing.assert_allclose(mesh.vertices_m.max(axis=0), (11, 21.5, 34))
    assert area(mesh) == pytest.approx(2 * (6 + 8 + 12))
    assert volume(mesh) == pytest.approx(24)


def test_a_rod_approaches_a_cylinder_and_a_ball_a_sphere() -> None:
    assert volume(rod((1, 2, 3), (1, 2, 8), 0.5, 0.5, 0, sides=64)) == pytest.approx(np.pi * 0.25 * 5, rel=0.01)
    assert volume(rod((0, 0, 0), (3, 0, 0), 0.5, 0.0, 0, sides=64)) == pytest.approx(np.pi * 0.25, rel=0.01)
    assert volume(ball((5, 5, 5), (1, 1, 2), 0, sides=48)) == pytest.approx(4 / 3 * np.pi * 2, rel=0.02)


def test_each_edge_of_a_prism_has_its_own_material_and_the_ends_the_last() -> None:
    mesh = prism([(0, 0), (1, 0), (0, 1)], [1, 1, 1], [3, 4, 5, 6])
    assert mesh.material.tolist() == [3, 3, 4, 4, 5, 5, 6, 6]
    assert volume(mesh) == pytest.approx(1.0)


def test_joined_meshes_keep_their_own_triangles() -> None:
    one, two = sheet([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], 7), box((1, 1, 1), (5, 5, 5), 8).of_class(9)
    both = join([one, two])
    assert both.material.tolist() == [7] * 2 + [8] * 12 and both.fine.tolist() == [0] * 2 + [9] * 12
    assert area(both) == pytest.approx(7)
    assert len(join([]).triangles) == len(EMPTY.triangles) == 0


def test_leaves_are_loose_facets_in_an_ellipsoid() -> None:
    crown = leaves(generator("test"), (0, 0, 5), (2, 1, 1), 300, 0.1, Stuff.LEAF, (1, 1, 1))
    assert len(crown.triangles) == 300 and len(crown.vertices_m) == 900
    assert (np.abs(crown.vertices_m - (0, 0, 5)) < np.array([2, 1, 1]) + 0.14).all()


@given(st.floats(-100, 100), st.floats(-60, 60), st.floats(-1 / 250, 1 / 250))
def test_distances_across_the_street_are_kept_on_any_bend(s_m: float, d_m: float, bend_per_m: float) -> None:
    street = Street(bend_per_m, np.zeros((1, 4)))
    middle, place = street.place(s_m, 0.0), street.place(s_m, d_m)
    assert np.linalg.norm(place - middle) == pytest.approx(abs(d_m), abs=1e-9)
    ahead = street.place(s_m + 1e-4, 0.0) - middle
    assert np.linalg.norm(ahead) == pytest.approx(1e-4, rel=1e-3)
    np.testing.assert_allclose(ahead / 1e-4, street.pose(s_m, d_m, 0.0)[:3, 0], atol=1e-3)


def test_a_tilted_pose_is_a_rotation_and_follows_the_slope() -> None:
    hill = Street(0.0, np.array([[1.0, 0.05, 0.0, 0.0]]))  # sin(0.05 x): a slope of 5 % at x = 0
    pose = hill.tilted_pose(0.0, 0.0, 0.0)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    assert pose[2, 0] == pytest.approx(0.05, abs=0.001) and pose[2, 1] == pytest.approx(0)


def test_later_patches_of_ground_lie_over_earlier_ones() -> None:
    ground = make_ground(
        [Patch("grass", (0, 10), (0, 10)), Patch("walk", (2, 6), (0, 10)), Patch("road", (5, 8), (3, 4))]
    )
    assert [ground.surface_at(s, 3.5) for s in (1, 3, 5.5, 7, 9)] == ["grass", "walk", "road", "road", "grass"]
    assert ground.surface_at(5.5, 6) == "walk" and ground.surface_at(-99, 99) == "grass"


def test_ground_covers_its_rectangle_once_and_has_kerbs_where_heights_differ() -> None:
    ground = make_ground([Patch("road", (0, 10), (0, 10)), Patch("walk", (0, 10), (4, 10))])
    mesh = ground.mesh(STRAIGHT, generator("test"))
    normal = np.cross(*(np.diff(mesh.vertices_m[mesh.triangles], axis=1).transpose(1, 0, 2)))
    flat = np.abs(normal[:, 2]) > 1e-9
    assert np.abs(normal[flat, 2]).sum() / 2 == pytest.approx(100)
    assert np.linalg.norm(normal[~flat], axis=1).sum() / 2 == pytest.approx(10 * 0.15)
    assert set(mesh.fine[~flat]) == {things.FINE["flat.sidewalk"]}
    assert len(ground.driveable(STRAIGHT)) == (ground.kind == ground.kind[0, 0]).sum()


@pytest.mark.parametrize("category", sorted(things.MAKERS))
def test_every_thing_has_one_class_stands_on_the_ground_and_is_of_its_usual_size(category: str) -> None:
    longest = {"vehicle": 18.0, "human": 1.2, "movable_object": 2.2}[category.split(".")[0]]
    for number in range(8):
        mesh = things.MAKERS[category](generator("test", category, number))
        low, high = mesh.vertices_m.min(axis=0), mesh.vertices_m.max(axis=0)
        assert set(mesh.fine) == {things.FINE[category]}
        assert -0.02 < low[2] < 0.25 and 0.4 < high[2] < 6.5
        assert high[0] - low[0] < longest


def test_every_material_has_a_known_pattern_and_every_pattern_is_used() -> None:
    assert list(MATERIALS) == list(Stuff) == list(range(len(Stuff)))
    assert {material.pattern for material in MATERIALS.values()} == set(PATTERNS)


def test_a_surface_looks_the_same_from_everywhere_but_for_fine_detail() -> None:
    place = generator("test").uniform(-50, 50, (500, 3)).astype(np.float32)
    up = np.tile(np.array([0, 0, 1], np.float32), (500, 1))
    material, tint = np.full(500, Stuff.ASPHALT, np.uint8), np.ones((500, 3), np.float32)
    near = surface(material, tint, place, up, np.full(500, 5, np.float32))
    again = surface(material, tint, place, up, np.full(500, 10, np.float32))
    far = surface(material, tint, place, up, np.full(500, 200, np.float32))
    np.testing.assert_array_equal(near.albedo, again.albedo)
    assert far.albedo.std() < near.albedo.std()
    assert (near.albedo > 0).all() and (near.albedo < 1).all()


def test_windows_are_dark_glass_that_pulses_pass_through() -> None:
    side = np.linspace(0, 30, 300, dtype=np.float32)
    y, z = (grid.ravel() for grid in np.meshgrid(side, side))
    wall = np.stack([np.zeros_like(y), y, z], axis=1)
    facing = np.tile(np.array([1, 0, 0], np.float32), (len(y), 1))
    look = surface(
        np.full(len(y), Stuff.OFFICE, np.uint8), np.ones((len(y), 3), np.float32), wall, facing, np.full_like(y, 20)
    )
    glass = look.lost > 0
    assert 0.35 < glass.mean() < 0.65
    assert look.albedo[:, glass].mean() < 0.4 * look.albedo[:, ~glass].mean()


def test_cameras_look_where_their_names_say_and_together_all_around() -> None:
    yaw = {}
    for sensor in RIG:
        forward = sensor.ego_from_sensor[:3, 2 if sensor.is_camera else 1]
        yaw[sensor.channel] = round(np.degrees(np.arctan2(forward[1], forward[0]))) % 360
        down = sensor.ego_from_sensor[2, 1 if sensor.is_camera else 2]
        assert down == pytest.approx(-1 if sensor.is_camera else 1)
        assert np.linalg.det(sensor.ego_from_sensor[:3, :3]) == pytest.approx(1)
    assert yaw["LIDAR_TOP"] == yaw["CAM_FRONT"] == 0
    assert yaw["CAM_FRONT_LEFT"] == 55 and yaw["CAM_FRONT_RIGHT"] == 305 and yaw["CAM_BACK"] == 180
    seen = np.zeros(360, bool)
    for sensor in RIG[1:]:
        half = int(sensor.field_deg / 2)
        seen[np.arange(yaw[sensor.channel] - half, yaw[sensor.channel] + half + 1) % 360] = True
    assert seen.all()


def test_rays_of_a_camera_go_through_pixel_centres() -> None:
    matrix = RIG[1].intrinsics(400, 225)
    rays = camera_rays(matrix, 400, 225).reshape(225, 400, 3)
    assert (rays[..., 2] == 1).all()
    np.testing.assert_allclose(matrix @ rays[17, 33], (33, 17, 1), atol=1e-3)
    assert np.degrees(2 * np.arctan(rays[0, -1, 0])) == pytest.approx(70, abs=0.3)


def test_the_lidar_turns_clockwise_from_the_left_and_fires_32_beams_at_a_time() -> None:
    rays, ring = lidar_rays(1085)
    assert rays.shape == (34_720, 3) and ring[:33].tolist() == [*range(32), 0]
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.degrees(np.arcsin(rays[:32, 2])), ELEVATIONS_DEG, atol=1e-4)
    middle = 16 + 32 * np.array([0, 271, 542, 814])
    assert (rays[middle[0], 0] < -0.9) and (rays[middle[1], 1] > 0.9) and (rays[middle[2], 0] > 0.9)
    assert rays[middle[3], 1] < -0.9


def echo_of(config: CityConfig, range_m: float, reflectance: float, lost: float = 0.0, n: int = 4000) -> Echoes:
    look = Surface(np.zeros((3, n), np.float32), *(np.full(n, value, np.float32) for value in (reflectance, 0.0, lost)))
    material = np.full(n, Stuff.PLASTER, np.uint8)
    return echoes(config, generator("test"), np.full(n, range_m, np.float32), np.ones(n, np.float32), look, material)


def test_far_and_dark_things_answer_less_often_and_nothing_answers_beyond_the_longest_range() -> None:
    config = replace(SIZES["demo"], detection_limit=0.003)
    shares = [echo_of(config, range_m, 0.1).detected.mean() for range_m in (5, 30, 60, 81)]
    assert shares[0] > 0.99 and shares[0] > shares[1] > shares[2] > shares[3] == 0
    assert echo_of(config, 30, 0.02).detected.mean() < shares[1]
    assert echo_of(config, 5, 0.1, lost=0.5).detected.mean() == pytest.approx(0.5, abs=0.05)


def test_ranges_carry_the_stated_noise_and_strays_hang_in_the_air() -> None:
    clean = echo_of(replace(SIZES["demo"], stray_share=0.0), 20, 0.5)
    assert clean.range_m.mean() == pytest.approx(20, abs=0.002) and clean.range_m.std() == pytest.approx(0.02, rel=0.1)
    dusty = echo_of(replace(SIZES["demo"], stray_share=0.2), 20, 0.5)
    assert dusty.stray.mean() == pytest.approx(0.2, abs=0.03)
    assert dusty.range_m[dusty.stray].max() <= 18 and not clean.stray.any()


def test_an_actor_hides_what_stands_behind_it_and_is_found_behind_what_hides_it() -> None:
    wall = box((1, 10, 10), (20, 0, -5), Stuff.PLASTER).of_class(28)
    near, far = (box((1, 2, 2), (x, 0, -1), Stuff.PAINT, (0.5, 0, 0)).of_class(17) for x in (10, 30))
    rays = np.array([[1, 0, 0], [1, 0.2, 0], [0, 0, 1]], np.float32)
    hits = Stage(wall).at([near, far]).cast(np.zeros(3), rays)
    np.testing.assert_allclose(hits.distance[:2], (9.5, 19.5), rtol=1e-6)
    assert np.isinf(hits.distance[2]) and hits.fine.tolist() == [17, 28, 0]
    assert hits.actor.tolist() == [0, -1, -1] and hits.actor_alone.tolist() == [0, -1, -1]
    np.testing.assert_allclose(hits.normal[:2], [[-1, 0, 0]] * 2, atol=1e-6)
    hidden = Stage(wall).at([far]).cast(np.zeros(3), rays)
    assert hidden.actor.tolist() == [-1, -1, -1] and hidden.actor_alone.tolist() == [0, -1, -1]


def test_shadows_fall_away_from_the_light() -> None:
    roof = box((2, 2, 0.1), (0, 0, 3), Stuff.ROOF)
    points = np.array([[0, 0, 0], [5, 0, 0]], np.float32)
    assert Stage(roof).at([]).blocked(points, np.array([0.0, 0.0, 1.0])).tolist() == [True, False]
    assert Stage(box((1, 1, 1), (50, 0, 0), 0)).at([roof]).blocked(points, np.array([0.0, 0.0, 1.0])).tolist() == [
        True,
        False,
    ]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return lay_out(SIZES["demo"], "city-0003")


def test_a_layout_depends_on_seed_and_name_alone(scene: Scene) -> None:
    again = lay_out(replace(SIZES["demo"], image_width_px=100), "city-0003")
    np.testing.assert_array_equal(scene.static.vertices_m, again.static.vertices_m)
    assert [actor.name for actor in scene.actors] == [actor.name for actor in again.actors]


def test_vehicles_of_a_drive_do_not_stand_in_each_other_at_the_start(scene: Scene) -> None:
    cars = [
        actor for actor in scene.actors if actor.category.startswith("vehicle") and abs(np.sin(actor.turn_rad)) < 0.1
    ]
    assert len(cars) > 5
    spans = np.array([
        (a.s_m + a.bounds_m[0, 0], a.s_m + a.bounds_m[1, 0], a.d_m + a.bounds_m[0, 1], a.d_m + a.bounds_m[1, 1])
        for a in cars
        if abs(a.turn_rad) < 0.1
    ])  # fmt: skip
    for i, (s0, s1, d0, d1) in enumerate(spans):
        others = np.delete(spans, i, axis=0)
        assert not ((others[:, 0] < s1) & (others[:, 1] > s0) & (others[:, 2] < d1) & (others[:, 3] > d0)).any()


def test_the_car_drives_on_the_road_on_the_right(scene: Scene) -> None:
    assert scene.ego_d_m < 0
    assert scene.ground.surface_at(scene.ego_s_m, scene.ego_d_m) == "road"
    start, later = scene.ego_pose(0.0), scene.ego_pose(1.0)
    ahead = start[:3, :3].T @ (later[:3, 3] - start[:3, 3])
    assert ahead[0] == pytest.approx(scene.ego_speed_mps, rel=0.05) and abs(ahead[1]) < 0.5


def test_walkers_start_on_pavements_and_cars_in_lanes_on_roads(scene: Scene) -> None:
    surfaces = {
        actor.name: scene.ground.surface_at(actor.s_m, actor.d_m) for actor in scene.actors if actor.s_speed_mps
    }
    vehicles = [kind for name, kind in surfaces.items() if name.startswith(("vehicle.car", "vehicle.truck"))]
    people = [kind for name, kind in surfaces.items() if name.startswith("human")]
    assert vehicles and set(vehicles) == {"road"}
    assert people and np.mean([kind in ("walk", "stone") for kind in people]) > 0.8


def test_any_two_drives_in_a_row_show_the_kinds_that_are_seldom_seen() -> None:
    near = set()
    for name in ("city-9001", "city-9002"):
        scene = lay_out(SIZES["demo"], name)
        near |= {actor.category for actor in scene.actors if -10 < actor.s_m - scene.ego_s_m < 60}
    assert near >= {
        *(f"vehicle.{kind}" for kind in ("truck", "bus.rigid", "trailer", "construction", "motorcycle", "bicycle")),
        *("movable_object.trafficcone", "movable_object.barrier", "human.pedestrian.adult", "vehicle.car"),
    }
